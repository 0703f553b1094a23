"""Which blocks of a volume a new seq changes. Paths' changes and a map in, blocks out: the cost follows the change.

A place of the address space is never given to other content (docs/format/address.md), so what changes a block is that
content comes into it that the volume before did not have, or that nothing is left in it. A block that gets new content
is built anew from all that the seq has there, and so is a function of the seq alone: built again it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from synclib.core.entry import ADDRESS_UNIT, Entry
from synclib.core.extent_map import Extent
from synclib.core.volume_layout import BLOCK_BYTES, Layout, SlotRecord, blocks_bytes

GIB = 1 << 30

Overlapping = Callable[[int, int], Sequence[Extent]]  # (start, stop) of the address space


class BlockSet:
    """Indices of blocks: a bit for each, so that a set of all is small."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        return index >> 3 < len(self._bits) and bool(self._bits[index >> 3] & 1 << (index & 7))

    def __iter__(self) -> Iterator[int]:
        """Rising."""
        for at, byte in enumerate(self._bits):
            if byte:
                yield from (at * 8 + bit for bit in range(8) if byte & 1 << bit)

    def add(self, index: int) -> None:
        if index not in self:
            if index >> 3 >= len(self._bits):
                self._bits.extend(bytes((index >> 3) + 1 - len(self._bits)))
            self._bits[index >> 3] |= 1 << (index & 7)
            self._count += 1

    def add_range(self, start: int, stop: int) -> None:
        """The blocks that have a byte in [start, stop)."""
        if start < stop:
            for index in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
                self.add(index)


@dataclass
class Changes:
    """What differs between two seqs, in blocks of the blob. ``fresh``: content comes there; ``left``: content went."""

    fresh: BlockSet = field(default_factory=BlockSet)
    left: BlockSet = field(default_factory=BlockSet)

    def note(self, before: Entry | None, after: Entry | None) -> None:
        """One path; None where a seq does not have it."""
        old, new = _span(before), _span(after)
        if old != new:
            self.fresh.add_range(*new)
            self.left.add_range(*old)

    def note_all(self, extents: Iterable[Extent]) -> None:
        """All of a seq, where there was no volume before."""
        for extent in extents:
            self.fresh.add_range(extent.position, extent.stop)


def _span(entry: Entry | None) -> tuple[int, int]:
    """The bytes of the address space that a file's content has."""
    if entry is None or not entry.chunks or not entry.address:
        return 0, 0
    start = entry.address * ADDRESS_UNIT
    return start, start + entry.size


def is_at_same_place(before: Entry, after: Entry) -> bool:
    """Whether two entries of one path have their content at one place."""
    return _span(before) == _span(after)


def zero_blocks(changes: Changes, overlapping: Overlapping) -> Iterator[int]:
    """Blocks of the blob in which nothing is left: said with zeros, or the volume before would shine through."""
    for index in changes.left:
        if index not in changes.fresh and not overlapping(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES):
            yield index


@dataclass(frozen=True)
class Plan:
    """What is put, as indices of the volume's blocks. ``blob``: built from extents; ``zeros``: nothing but zeros;
    ``slot``: image and map; the header, which is block 0, comes last."""

    slot: range
    image_blocks: int  # so many of the slot's first blocks hold the image, the rest the map
    zeros: Sequence[int]
    blob: BlockSet  # of the blob, counted from its beginning
    blob_first: int  # the volume's index of the blob's first block

    def __len__(self) -> int:
        return 1 + len(self.slot) + len(self.zeros) + len(self.blob)


def plan_of(layout: Layout, record: SlotRecord, slot: int, changes: Changes, zeros: Iterable[int]) -> Plan:
    """``zeros``: of the blob, counted from its beginning."""
    first = layout.slot(slot) // BLOCK_BYTES
    blob_first = layout.blob // BLOCK_BYTES
    return Plan(
        range(first, first + blocks_bytes(record.used_bytes) // BLOCK_BYTES),
        record.map_offset // BLOCK_BYTES,
        [blob_first + index for index in zeros],
        changes.fresh,
        blob_first,
    )


def groups(blocks: Iterable[int], count_max: int) -> Iterator[list[int]]:
    """Neighbours together, at most so many: what is built at once."""
    group: list[int] = []
    for index in blocks:
        if group and (index != group[-1] + 1 or len(group) >= count_max):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def size_gib(layout: Layout, address_end: int, least_gib: int = 0) -> int:
    """How large a volume must be."""
    return max(-(-layout.volume_bytes(address_end) // GIB), least_gib, 1)
