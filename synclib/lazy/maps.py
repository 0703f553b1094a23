"""The extents of a seq from two maps: that of its chain's snap, read from its object as far as it is needed, and a
small one of the diffs since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from synclib.core.extent_map import MAGIC, Extent, MapTail, Page, PageInfo, decode_page, decode_tail
from synclib.core.manifest import Attachment
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.errors import Corrupt
from synclib.lazy.blob import MapReader, ReadRange
from synclib.lazy.mirror import Mirror

_EMPTY = Page(((),) * 6, b"", [])


def file_map(file: IO[bytes]) -> MapReader:
    """A map in a file."""
    return MapReader(*_tail_and_read(file))


def _tail_and_read(file: IO[bytes]) -> tuple[MapTail, ReadRange]:
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    length = tail_bytes(MAGIC, "map", os.pread(descriptor, FOOTER_BYTES, max(size - FOOTER_BYTES, 0)))
    tail = decode_tail(os.pread(descriptor, length, size - length), size)
    return tail, lambda start, stop: os.pread(descriptor, stop - start, start)


def local_map(file: IO[bytes]) -> MapReader:
    """What is here of a map's object (lazy/mirror.py). Corrupt where not even its index is."""
    return _LocalMap(*_tail_and_read(file))


class _LocalMap(MapReader):
    def _decoded(self, info: PageInfo) -> Page:
        try:
            return super()._decoded(info)
        except Corrupt:  # a page that was never read: nothing of it can be in the cache
            return _EMPTY


class ObjectMap(MapReader):
    """A map in the store; what was read of it stays here."""

    def __init__(self, item: Attachment, mirror: Mirror) -> None:
        """Reads the index: one round trip, or none where it was read before."""
        self._mirror = mirror
        super().__init__(read_map_tail(item, mirror), lambda start, stop: mirror.fetch([(start, stop)])[0])

    def _decoded(self, info: PageInfo) -> Page:
        place = (info.offset, info.offset + info.stored_bytes)
        return self._mirror.decoded([place], lambda _, data: decode_page(info, data))[0]


def read_map_tail(item: Attachment, mirror: Mirror) -> MapTail:
    place = (item.object_bytes - item.tail_bytes, item.object_bytes)
    return mirror.decoded([place], lambda _, data: decode_tail(data, item.object_bytes, item.tail_digest))[0]


class Layered:
    """Maps, the newest first: what several of them have at one position is the same content, and the newest says where
    it is stored."""

    def __init__(self, layers: list[MapReader]) -> None:
        self._layers = layers

    def overlapping(self, start: int, stop: int) -> list[Extent]:
        """The extents that have a byte in [start, stop), by position."""
        if len(self._layers) == 1:
            return self._layers[0].overlapping(start, stop)
        found: dict[int, Extent] = {}
        for layer in self._layers:
            for extent in layer.overlapping(start, stop):
                found.setdefault(extent.position, extent)
        return [found[position] for position in sorted(found)]

    def walk(self) -> Iterator[list[Extent]]:
        """All extents, page by page, layer by layer."""
        for number, layer in enumerate(self._layers):
            for page in layer.walk():
                if number:
                    newer = {
                        extent.position
                        for above in self._layers[:number]
                        for extent in above.overlapping(page[0].position, page[-1].stop)
                    }
                    page = [extent for extent in page if extent.position not in newer]  # noqa: PLW2901
                if page:
                    yield page
