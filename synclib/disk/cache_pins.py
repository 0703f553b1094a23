"""Which parts of a cache must not be evicted: a small file beside it, named by the paths that a person pinned."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import msgspec

from synclib.core.frame import DECODE_ERRORS
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors


class Pins:
    """Of the cache in ``directory``: path -> ranges [first, stop) of units."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "pins.json"
        self.by_path: dict[str, list[tuple[int, int]]] = {}
        self._merged: tuple[list[int], list[int]] = ([], [])
        self.refresh()

    def refresh(self) -> None:
        """See what another process has pinned."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            data = b"{}"
        try:
            self._take(msgspec.json.decode(data, type=dict[str, list[tuple[int, int]]]))
        except DECODE_ERRORS:
            self._take({})

    def pin(self, path: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Durable when it returns."""
        self.refresh()
        self._write({**self.by_path, path: list(ranges)})

    def unpin(self, path: str) -> bool:
        """Whether it was pinned."""
        self.refresh()
        if path not in self.by_path:
            return False
        self._write({known: ranges for known, ranges in self.by_path.items() if known != path})
        return True

    def holds(self, unit: int) -> bool:
        firsts, stops = self._merged
        index = bisect.bisect_right(firsts, unit) - 1
        return index >= 0 and unit < stops[index]

    def _write(self, pins: dict[str, list[tuple[int, int]]]) -> None:
        with disk_errors():
            write_atomic(self._path, msgspec.json.encode(pins))
        self._take(pins)

    def _take(self, pins: dict[str, list[tuple[int, int]]]) -> None:
        self.by_path = pins
        merged: list[tuple[int, int]] = []
        for first, stop in sorted(item for ranges in pins.values() for item in ranges):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((first, stop))
        self._merged = [first for first, _ in merged], [stop for _, stop in merged]
