"""Whether the chunks that entries name are slots of their packs: asked pack by pack, so that each slot table is read
once and none is kept, however the chunks of neighbouring files are spread over packs."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator

from synclib.core.entry import ChunkRef, Entry
from synclib.disk.sorted_rows import SortedRows

# Number of the pack, then what a slot says, the offset first: big-endian, so that rows as bytes are in the order of
# packs and of their slots.
_ROW = struct.Struct(">IQII32sB")

# The slots of a pack in the order of their offsets; None for a pack whose damage is told already.
Slots = Callable[[bytes], Iterator[ChunkRef] | None]


class Places:
    """Takes entries as they come; then says which of their chunks are no slots."""

    def __init__(self) -> None:
        self._rows = SortedRows(_ROW.size)
        self._packs: dict[bytes, int] = {}

    def close(self) -> None:
        self._rows.close()

    def note(self, entry: Entry) -> None:
        packs, add = self._packs, self._rows.add
        for chunk in entry.chunks:
            add(_row(packs.setdefault(chunk.pack, len(packs)), chunk))

    def wrong(self, slots_of: Slots) -> Iterator[ChunkRef]:
        """The chunks that are not where entries say. Ends the taking of entries."""
        packs = list(self._packs)
        for number, rows in itertools.groupby(self._rows.sorted(), key=lambda row: row[:4]):
            slots = slots_of(packs[int.from_bytes(number, "big")])
            if slots is not None:
                for row in _lacking(rows, (_row(int.from_bytes(number, "big"), slot) for slot in slots)):
                    _, offset, stored, plain, digest, codec = _ROW.unpack(row)
                    yield ChunkRef(digest, packs[int.from_bytes(number, "big")], offset, stored, plain, codec)


def _row(number: int, chunk: ChunkRef) -> bytes:
    return _ROW.pack(number, chunk.offset, chunk.stored_bytes, chunk.plain_bytes, chunk.hash, chunk.codec)


def _lacking(wanted: Iterable[bytes], there: Iterator[bytes]) -> Iterator[bytes]:
    """Rows that are not among others; both in order."""
    slot: bytes | None = b""
    for row in wanted:
        while slot is not None and slot < row:
            slot = next(there, None)
        if slot != row:
            yield row
