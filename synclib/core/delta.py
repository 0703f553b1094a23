"""The difference of two sorted tables, and what of a scan has to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from synclib.core.entry import Entry, Kind

L = TypeVar("L")
R = TypeVar("R")

# A file system's clock ticks at most this coarsely (Linux: 10 ms at HZ=100), so a file may change after it was read
# without its time changing: a file that young is read again.
RACY_NS = 100_000_000


def join(
    left: Iterable[L], right: Iterable[R], left_key: Callable[[L], bytes], right_key: Callable[[R], bytes]
) -> Iterator[tuple[L | None, R | None]]:
    """Merge-join two streams sorted by key without repeats: pairs where both have it, else one side None."""
    lefts, rights = iter(left), iter(right)
    first, second = next(lefts, None), next(rights, None)
    while first is not None and second is not None:
        a, b = left_key(first), right_key(second)
        if a == b:
            yield first, second
            first, second = next(lefts, None), next(rights, None)
        elif a < b:
            yield first, None
            first = next(lefts, None)
        else:
            yield None, second
            second = next(rights, None)
    while first is not None:
        yield first, None
        first = next(lefts, None)
    while second is not None:
        yield None, second
        second = next(rights, None)


def is_unchanged(entry: Entry, kind: int, mode: int, mtime_ns: int, size: int, target: bytes) -> bool:
    """Whether what a stat says is what an entry says, and old enough to be believed."""
    if entry.kind != kind or entry.mode != mode:
        return False
    if kind == Kind.FILE:
        return entry.mtime_ns == mtime_ns and entry.size == size and not entry.is_racy
    if kind == Kind.SYMLINK:
        return entry.target == target and entry.mtime_ns == mtime_ns
    return True


def is_racy(entry: Entry, scanned_at_ns: int) -> bool:
    """Whether a file was so young when the scan that found it began that a change since may not show in its time."""
    return entry.kind == Kind.FILE and entry.mtime_ns >= scanned_at_ns - RACY_NS
