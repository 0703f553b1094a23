"""The list of a wall's covers, in path order, kept as one string of bytes: a cover costs its path and 8 bytes."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterable

import numpy as np

from synclib.core.entry import Entry
from synclib.core.names import sort_key, split_path
from synclib.core.wall_index import is_picture
from synclib.errors import Unsupported

COVERS_MAX = 16 << 20


class Covers:
    """Paths of covers by index."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._stops = array("Q", [0])

    def __len__(self) -> int:
        return len(self._stops) - 1

    def append(self, path: bytes) -> None:
        self._check_room(1)
        self._paths += path
        self._stops.append(len(self._paths))

    def append_many(self, lengths: array[int], paths: bytes | bytearray | memoryview) -> None:
        """Paths one after the other, and how long each is."""
        self._check_room(len(lengths))
        stops = np.cumsum(np.frombuffer(lengths, np.dtype(lengths.typecode)), dtype=np.uint64) + np.uint64(
            len(self._paths)
        )
        self._stops.frombytes(stops.tobytes())
        self._paths += paths

    def _check_room(self, count: int) -> None:
        if len(self) + count > COVERS_MAX:
            raise Unsupported(f"a wall has room for {COVERS_MAX} covers", hint="publish the covers as several datasets")

    def with_changes(self, changes: Iterable[tuple[bytes, bool]]) -> Covers:
        """These covers after some changes: (path, whether it is a cover now), in the order of paths."""
        found, taken = Covers(), 0
        for path, is_there in changes:
            key = sort_key(*split_path(path))
            index = bisect.bisect_left(range(len(self)), key, lo=taken, key=self._key)
            found._append_from(self, taken, index)
            taken = index + (index < len(self) and self.path(index) == path)
            if is_there:
                found.append(path)
        found._append_from(self, taken, len(self))
        return found

    def _append_from(self, other: Covers, first: int, stop: int) -> None:
        if first < stop:
            lengths = array("Q", np.diff(np.frombuffer(other._stops, np.uint64)[first : stop + 1]).tobytes())
            self.append_many(lengths, other._paths[other._stops[first] : other._stops[stop]])

    def _key(self, index: int) -> bytes:
        return sort_key(*split_path(self.path(index)))

    def path(self, index: int) -> bytes:
        """The path of a cover, 0 <= index < len."""
        return bytes(self._paths[self._stops[index] : self._stops[index + 1]])

    def stem(self, index: int) -> bytes:
        """The file's name without its suffix: what stands for a title where there is none, and a catalog's id."""
        return self.path(index).rpartition(b"/")[2].rpartition(b".")[0]


def collect_covers(entries: Iterable[Entry]) -> Covers:
    """The covers among ``entries``, in their order."""
    covers = Covers()
    for entry in entries:
        if is_picture(entry):
            covers.append(entry.path)
    return covers
