"""The extents of all files of a chain, put in the order of their positions without holding them in memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from synclib.core.entry import ADDRESS_UNIT, ChunkRef, Entry
from synclib.core.extent_map import Extent
from synclib.disk.sorted_rows import SortedRows

_ROW = struct.Struct(">QQIII32sB")  # big-endian, so that rows as bytes are in the order of their positions


class ExtentRows:
    """Takes entries as they come in the order of paths; gives extents in the order of positions, each once.

    Addresses are given in the order of paths, so what one publish brought is sorted already.
    """

    def __init__(self) -> None:
        self._rows = SortedRows(_ROW.size)
        self._packs: dict[bytes, int] = {}

    def __enter__(self) -> ExtentRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def noting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries as they come; their extents are kept."""
        pack, packs, add = _ROW.pack, self._packs, self._rows.add
        for entry in entries:
            position = entry.address * ADDRESS_UNIT
            for chunk in entry.chunks:
                number = packs.setdefault(chunk.pack, len(packs))
                add(
                    pack(position, chunk.offset, chunk.stored_bytes, chunk.plain_bytes, number, chunk.hash, chunk.codec)
                )
                position += chunk.plain_bytes
            yield entry

    def sorted(self) -> Iterator[Extent]:
        """By position, each once: hard links share theirs. Ends the taking of entries."""
        packs = list(self._packs)
        last = -1
        for row in self._rows.sorted():
            position, offset, stored, plain, number, digest, codec = _ROW.unpack(row)
            if position != last:
                yield Extent(position, ChunkRef(digest, packs[number], offset, stored, plain, codec))
            last = position
