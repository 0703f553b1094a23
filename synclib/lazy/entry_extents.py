"""The extents of a seq from its chain: those of the files that were asked for, without a map."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator

from synclib.core.entry import ADDRESS_UNIT, Entry, Kind
from synclib.core.extent_map import Extent
from synclib.errors import Corrupt
from synclib.lazy.chain import Chain

_FILES_KEPT = 50_000
_WALK_EXTENTS = 1000


class EntryExtents:
    """Safe between threads. Of files that :meth:`know` was not told of lately it knows nothing: it says what lies near,
    not what there is at a place."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._files: OrderedDict[int, Entry] = OrderedDict()  # by address
        self._addresses: list[int] = []  # of these, sorted
        self._lock = threading.Lock()

    def know(self, entry: Entry) -> None:
        """A file whose bytes will be asked for."""
        with self._lock:
            if entry.address in self._files:
                self._files.move_to_end(entry.address)
            elif entry.chunks:
                self._files[entry.address] = entry
                bisect.insort(self._addresses, entry.address)
                if len(self._files) > _FILES_KEPT:
                    forgotten, _ = self._files.popitem(last=False)
                    del self._addresses[bisect.bisect_left(self._addresses, forgotten)]

    def overlapping(self, start: int, stop: int) -> list[Extent]:
        """The known extents that have a byte in [start, stop), by position."""
        with self._lock:
            first = max(bisect.bisect_right(self._addresses, start // ADDRESS_UNIT) - 1, 0)
            last = bisect.bisect_left(self._addresses, -(-stop // ADDRESS_UNIT))
            near = [self._files[address] for address in self._addresses[first:last]]
        return [
            extent
            for entry in near
            for extent in extents_of(entry, start - entry.address * ADDRESS_UNIT)
            if extent.position < stop and extent.stop > start
        ]

    def walk(self) -> Iterator[list[Extent]]:
        """All extents of the seq, in the order of paths."""
        files = (entry for entry in self._chain.entries() if entry.kind == Kind.FILE)
        every = (extent for entry in files for extent in extents_of(entry))
        while found := list(itertools.islice(every, _WALK_EXTENTS)):
            yield found


def extents_at(entry: Entry, offset: int, length: int) -> list[Extent]:
    """The extents that hold some bytes of a file. Corrupt unless they hold all of them."""
    start = entry.address * ADDRESS_UNIT + offset
    stop = start + length
    found = [extent for extent in extents_of(entry, offset) if extent.position < stop]
    if not entry.address or not found or found[0].position > start or found[-1].stop < stop:
        raise Corrupt(f"{entry.path!r} has no bytes there")
    return found


def extents_of(entry: Entry, offset: int = 0) -> Iterator[Extent]:
    """Where a file's chunks are in the address space; those that end at or before an offset in the file are passed
    over."""
    position = entry.address * ADDRESS_UNIT
    first = position + offset
    for chunk in entry.chunks:
        if position + chunk.plain_bytes > first:
            yield Extent(position, chunk)
        position += chunk.plain_bytes
