"""The extents of all files of a chain, put in the order of their positions without holding them in memory."""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Iterable, Iterator

from synclib.core.entry import ADDRESS_UNIT, ChunkRef, Entry
from synclib.core.extent_map import Extent

_ROW = struct.Struct(">QQIII32sB")  # big-endian, so that rows as bytes are in the order of their positions
_SORTED_ROWS = 1 << 18  # how many are sorted at a time: some 30 MB
_READ_ROWS = 1 << 10


class ExtentRows:
    """Takes entries as they come in the order of paths; gives extents in the order of positions, each once.

    Addresses are given in the order of paths, so what one publish brought is sorted already: sorted stretches are kept
    in a file, and merged only where they overlap.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
        self._rows: list[bytes] = []
        self._stretches: list[tuple[int, int]] = []  # (offset in the file, rows)
        self._packs: dict[bytes, int] = {}

    def __enter__(self) -> ExtentRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def noting(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries as they come; their extents are kept."""
        pack, packs = _ROW.pack, self._packs
        for entry in entries:
            position = entry.address * ADDRESS_UNIT
            for chunk in entry.chunks:
                number = packs.setdefault(chunk.pack, len(packs))
                row = (position, chunk.offset, chunk.stored_bytes, chunk.plain_bytes, number, chunk.hash, chunk.codec)
                self._rows.append(pack(*row))
                position += chunk.plain_bytes
            if len(self._rows) >= _SORTED_ROWS:
                self._keep()
            yield entry

    def _keep(self) -> None:
        self._rows.sort()
        self._stretches.append((self._file.tell(), len(self._rows)))
        self._file.writelines(self._rows)
        self._rows = []

    def sorted(self) -> Iterator[Extent]:
        """By position, each once: hard links share theirs. Ends the taking of entries."""
        self._keep()
        self._file.flush()
        packs = list(self._packs)
        last = -1
        for row in heapq.merge(*(self._read(*stretch) for stretch in self._stretches)):
            position, offset, stored, plain, number, digest, codec = _ROW.unpack(row)
            if position != last:
                yield Extent(position, ChunkRef(digest, packs[number], offset, stored, plain, codec))
            last = position

    def _read(self, offset: int, count: int) -> Iterator[bytes]:
        end = offset + count * _ROW.size
        while offset < end:
            self._file.seek(offset)
            data = self._file.read(min(_READ_ROWS * _ROW.size, end - offset))
            offset += len(data)
            yield from (data[at : at + _ROW.size] for at in range(0, len(data), _ROW.size))
