"""What a volume holds, byte by byte. Normative table: docs/format/volume.md.

    header    one block: where things are, and for each slot a record of the seq that it holds
    slot A    an EROFS image of a seq's metadata, then the map of its extents
    slot B    the same for another seq
    blob      the dataset's address space (docs/format/address.md), as a node's cache has it

A new seq is written into the slot that is not the newest, and its record last, into a sector of its own: whoever dies
before that leaves a volume of the seq before. Nothing in a volume is believed: a record says where to look, and what
is found there is hashed.
"""

from __future__ import annotations

import struct

import msgspec
import xxhash

from synclib.core.entry import ADDRESS_FIRST, ADDRESS_MAX, ADDRESS_UNIT, HASH_BYTES
from synclib.core.frame import VERSION, check_version
from synclib.core.names import check_dataset
from synclib.errors import BoxlinkError, Corrupt

MAGIC, RECORD_MAGIC = b"BXLV", b"BXLS"
BLOCK_BYTES = 512 << 10  # of a volume: what its service reads, writes and counts
SECTOR_BYTES = 4096  # what a disk writes whole
SLOTS = 2
HEADER_BYTES = (1 + SLOTS) * SECTOR_BYTES  # of the first block; the rest is zeros
SLOT_BYTES_MIN = 64 << 20
SLOT_BYTES_MAX = 64 << 30
_ROOT_BYTES_MAX = 256
# Magic, version, 0, features; bytes of a block; bytes of a slot; offsets of both slots and of the blob.
_HEADER = struct.Struct("<4sHHQIQQQQ")
# Magic, version, 0, features; generation, seq, digest, address end; image: length, hash; map: the same; the root.
_RECORD = struct.Struct(f"<4sHHQQQ{HASH_BYTES}sQQ{HASH_BYTES}sQ{HASH_BYTES}sH{_ROOT_BYTES_MAX}s")
_CHECKSUM = struct.Struct("<Q")  # XXH3-64, at the end of each sector
_SEQ_MAX = 1 << 63


class Layout(msgspec.Struct, frozen=True):
    """Where things are, in bytes; the same for a volume's whole life."""

    slot_bytes: int

    def slot(self, index: int) -> int:
        return BLOCK_BYTES + index * self.slot_bytes

    @property
    def blob(self) -> int:
        return BLOCK_BYTES + SLOTS * self.slot_bytes

    def volume_bytes(self, address_end: int) -> int:
        """What a volume needs that holds the address space up to there."""
        return self.blob + address_end * ADDRESS_UNIT


class SlotRecord(msgspec.Struct, frozen=True):
    """What a slot holds. The map begins in the first block behind the image. ``digest``: of the seq, 64 hex digits;
    hashes are BLAKE3-256 of the whole image, the whole map. Of two records that of the higher generation is newer."""

    generation: int
    root: str  # of the dataset, in whatever store
    seq: int
    digest: str
    address_end: int  # in units: the blob is good up to there
    image_bytes: int
    image_hash: bytes
    map_bytes: int
    map_hash: bytes

    @property
    def map_offset(self) -> int:
        """In the slot."""
        return blocks_bytes(self.image_bytes)

    @property
    def used_bytes(self) -> int:
        """Of the slot."""
        return self.map_offset + self.map_bytes


class Header(msgspec.Struct, frozen=True):
    """``records``: of each slot; None where it holds nothing, or where its record is torn."""

    layout: Layout
    records: tuple[SlotRecord | None, SlotRecord | None]

    @property
    def newest(self) -> int | None:
        """The slot of the newest seq; None where neither holds one."""
        held = [index for index, record in enumerate(self.records) if record is not None]
        return max(held, key=self._generation, default=None)

    @property
    def record(self) -> SlotRecord | None:
        """The newest."""
        return None if self.newest is None else self.records[self.newest]

    def _generation(self, index: int) -> int:
        record = self.records[index]
        return 0 if record is None else record.generation

    def next_slot(self) -> int:
        """Where the next seq goes: the slot that is not the newest."""
        return 0 if self.newest is None else 1 - self.newest

    def next_generation(self) -> int:
        return max(map(self._generation, range(SLOTS))) + 1

    def with_record(self, record: SlotRecord) -> Header:
        """The header when a seq has come into :meth:`next_slot`."""
        first, second = self.records
        records = (record, second) if self.next_slot() == 0 else (first, record)
        return Header(self.layout, records)


def blocks_bytes(length: int) -> int:
    """A length in whole blocks."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def layout_for(image_bytes: int, map_bytes: int) -> Layout:
    """A layout with room for a metadata of four times that."""
    wanted = 4 * (blocks_bytes(image_bytes) + blocks_bytes(map_bytes))
    return Layout(min(max(SLOT_BYTES_MIN, 1 << (wanted - 1).bit_length()), SLOT_BYTES_MAX))


def encode_header(header: Header) -> bytes:
    """The first sectors of a volume."""
    layout = header.layout
    slots = [layout.slot(index) for index in range(SLOTS)]
    top = _HEADER.pack(MAGIC, VERSION, 0, 0, BLOCK_BYTES, layout.slot_bytes, *slots, layout.blob)
    return b"".join([_sector(top), *map(encode_record, header.records)])


def encode_record(record: SlotRecord | None) -> bytes:
    """A slot's sector: zeros where it holds nothing."""
    if record is None:
        return bytes(SECTOR_BYTES)
    root = record.root.encode()
    return _sector(
        _RECORD.pack(
            RECORD_MAGIC,
            VERSION,
            0,
            0,
            record.generation,
            record.seq,
            bytes.fromhex(record.digest),
            record.address_end,
            record.image_bytes,
            record.image_hash,
            record.map_bytes,
            record.map_hash,
            len(root),
            root,
        )
    )


def record_offset(slot: int) -> int:
    """Where a slot's sector is in the volume."""
    return (1 + slot) * SECTOR_BYTES


def decode_header(data: bytes | memoryview) -> Header:
    """From the first sectors of a volume, or more of it. Corrupt where the first one is no header of a volume; a
    record that is torn or impossible is as if it were not there. Unsupported for what is newer."""
    if len(data) < HEADER_BYTES:
        raise Corrupt("a volume is too short for its header")
    magic, version, _, features, block_bytes, slot_bytes, first, second, blob = _HEADER.unpack_from(data)
    check_version(MAGIC, magic, version, features)
    if not _is_whole(data[:SECTOR_BYTES]):
        raise Corrupt("a volume's header does not have its checksum")
    layout = Layout(slot_bytes)
    if (
        block_bytes != BLOCK_BYTES
        or slot_bytes % BLOCK_BYTES
        or not 0 < slot_bytes <= SLOT_BYTES_MAX
        or (first, second, blob) != (layout.slot(0), layout.slot(1), layout.blob)
    ):
        raise Corrupt("a volume's header is impossible")
    records = [_record_or_none(data[at : at + SECTOR_BYTES], layout) for at in map(record_offset, range(SLOTS))]
    return Header(layout, (records[0], records[1]))


def _record_or_none(sector: bytes | memoryview, layout: Layout) -> SlotRecord | None:
    try:
        return decode_record(sector, layout)
    except Corrupt:
        return None


def decode_record(sector: bytes | memoryview, layout: Layout) -> SlotRecord:
    """A slot's record. Corrupt where there is none, or not a whole one."""
    found = _RECORD.unpack_from(sector)
    magic, version, _, features, generation, seq, digest, address_end = found[:8]
    image_bytes, image_hash, map_bytes, map_hash, root_bytes, root_data = found[8:]
    check_version(RECORD_MAGIC, magic, version, features)
    if not _is_whole(sector):
        raise Corrupt("a slot's record does not have its checksum")
    record = SlotRecord(
        generation,
        _root(root_data[:root_bytes]) if root_bytes <= _ROOT_BYTES_MAX else "",
        seq,
        digest.hex(),
        address_end,
        image_bytes,
        image_hash,
        map_bytes,
        map_hash,
    )
    if (
        not record.root
        or not 0 < generation < _SEQ_MAX
        or not 0 < seq < _SEQ_MAX
        or not ADDRESS_FIRST <= address_end <= ADDRESS_MAX
        or not image_bytes
        or not map_bytes
        or record.used_bytes > layout.slot_bytes
    ):
        raise Corrupt("a slot's record is impossible")
    return record


def _root(data: bytes) -> str:
    """``data/<dataset>`` or ``release/<name>``; empty for anything else."""
    try:
        root = data.decode("ascii")
        folder, _, name = root.partition("/")
        return root if folder in ("data", "release") and check_dataset(name) else ""
    except (UnicodeDecodeError, BoxlinkError):
        return ""


def _sector(content: bytes) -> bytes:
    padded = content.ljust(SECTOR_BYTES - _CHECKSUM.size, b"\0")
    return padded + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(padded))


def _is_whole(sector: bytes | memoryview) -> bool:
    at = SECTOR_BYTES - _CHECKSUM.size
    found: int = _CHECKSUM.unpack_from(sector, at)[0]
    return found == xxhash.xxh3_64_intdigest(sector[:at])
