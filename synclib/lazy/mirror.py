"""What was read of an immutable object, on the disk: a sparse file of the object's length.

It has no record of what is in it. Whoever decodes a range knows its digest, and what does not have it is fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from synclib.disk.faults import disk_errors
from synclib.errors import BoxlinkError, Corrupt, Full
from synclib.lazy.not_here import before_waiting
from synclib.store.base import Buffer, Store

T = TypeVar("T")
Range = tuple[int, int]
_WHOLE_RANGE_BYTES = 2 << 20  # of an object that is fetched whole: so many ranges side by side


class Mirror:
    """Safe between threads, and between processes: all write the same bytes."""

    def __init__(self, path: Path, store: Store, key: str, object_bytes: int) -> None:
        self._store, self.key, self.object_bytes = store, key, object_bytes
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._file).st_size != object_bytes:
                os.ftruncate(self._file, object_bytes)

    def close(self) -> None:
        os.close(self._file)

    def fill(self, executor: Executor) -> None:
        """Bring the whole object here, as many ranges side by side as there are."""
        ranges = [
            (start, min(start + _WHOLE_RANGE_BYTES, self.object_bytes))
            for start in range(0, self.object_bytes, _WHOLE_RANGE_BYTES)
        ]
        for _ in executor.map(lambda place: self.fetch([place]), ranges):
            pass

    def holds(self, place: Range, decode: Callable[[int, Buffer], object]) -> bool:
        """Whether a range is here."""
        try:
            decode(0, self._local(*place))
        except Corrupt:
            return False
        return True

    def decoded(self, ranges: Sequence[Range], decode: Callable[[int, Buffer], T]) -> list[T]:
        """``decode`` of (number, bytes) of each range; it raises Corrupt for what is not right. Ranges that are not
        here are fetched, together."""
        found: dict[int, T] = {}
        for number, (start, stop) in enumerate(ranges):
            with contextlib.suppress(Corrupt):
                found[number] = decode(number, self._local(start, stop))
        lacking = [number for number in range(len(ranges)) if number not in found]
        if lacking:
            try:
                for number, data in zip(lacking, self.fetch([ranges[number] for number in lacking]), strict=True):
                    found[number] = decode(number, data)
            except BoxlinkError as error:
                error.key = error.key or self.key
                raise
        return [found[number] for number in range(len(ranges))]

    def _local(self, start: int, stop: int) -> bytes:
        with disk_errors():
            return os.pread(self._file, stop - start, start)

    def fetch(self, ranges: Sequence[Range]) -> list[Buffer]:
        """Bring ranges here, verified by nobody yet."""
        before_waiting()
        answers = self._store.get_ranges(self.key, ranges)
        with contextlib.suppress(Full), disk_errors():  # what finds no room is fetched again
            for (start, _), data in zip(ranges, answers, strict=True):
                os.pwrite(self._file, data, start)
        return answers
