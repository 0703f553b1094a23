"""What differs between two chains of one dataset; the cost follows the difference where one continues the other."""

from __future__ import annotations

from collections.abc import Iterator

from synclib.core.delta import join
from synclib.core.entry import Entry, Kind
from synclib.lazy.chain import Chain


def changes(old: Chain, new: Chain) -> Iterator[tuple[Entry | None, Entry | None]]:
    """(before, after) of each path that differs, in order; None where a chain does not have it."""
    old_ulids = [run.ref.ulid for run in old.runs]
    new_ulids = [run.ref.ulid for run in new.runs]
    if old_ulids and new_ulids[: len(old_ulids)] == old_ulids:
        return _added(old, new, len(old_ulids))
    return _differing(old, new)


def _added(old: Chain, new: Chain, first: int) -> Iterator[tuple[Entry | None, Entry | None]]:
    """The new chain is the old one and some runs more: only those are read."""
    for entry, _ in Chain(new.runs[first:]).merged():
        before = old.lookup(entry.key)
        after = None if entry.kind == Kind.TOMBSTONE else entry
        if before is not None or after is not None:
            yield before, after


def _differing(old: Chain, new: Chain) -> Iterator[tuple[Entry | None, Entry | None]]:
    for before, after in join(old.entries(), new.entries(), lambda entry: entry.key, lambda entry: entry.key):
        if before != after:
            yield before, after
