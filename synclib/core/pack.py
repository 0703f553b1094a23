"""A pack: many chunks in one object, then a slot table that names them. Normative table: docs/format/pack.md.

header   32 B   magic, version, feature bits, ULID
chunks          stored bytes, one after the other, in path order
slots    52 B   each: hash, offset, stored length, plain length, codec
footer   56 B   offset of the slots, their count, their BLAKE3-256, version, magic
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import CHUNK_BYTES_MAX, ChunkRef, Codec
from synclib.core.frame import VERSION, check_version
from synclib.core.memory import allocate
from synclib.errors import Corrupt

MAGIC = b"BXLP"
# Large enough that 180 GB are some 6,000 objects, small enough that two workers each hold one in memory.
PACK_BYTES_TARGET = 32 << 20
# A full pack of chunks that are not tiny, with its slots.
_BUFFER_BYTES = PACK_BYTES_TARGET + CHUNK_BYTES_MAX + (256 << 10)

_PROBED_BYTES, _LARGE_BYTES = 8 << 10, 64 << 10

_HEADER = struct.Struct("<4sHHQ16s")
_SLOT = struct.Struct("<32sQIIB3x")
_FOOTER = struct.Struct("<QI4x32sHH4s")
HEADER_BYTES = _HEADER.size
SLOT_BYTES = _SLOT.size
FOOTER_BYTES = _FOOTER.size


class PackBuilder:
    """Collects chunks into one pack in memory. Not safe between threads.

    ``buffer``: memory of an earlier pack that is no longer needed, to be used again.
    """

    def __init__(self, ulid: bytes, buffer: mmap.mmap | None = None) -> None:
        self.ulid = ulid
        self.buffer = allocate(_BUFFER_BYTES) if buffer is None else buffer
        self._view = memoryview(self.buffer)
        self._slots = bytearray()
        self._length = 0
        self.slot_count = 0
        self._append(_HEADER.pack(MAGIC, VERSION, 0, 0, ulid))

    def __len__(self) -> int:
        return self._length

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        stop = self._length + len(data)
        if stop > len(self.buffer):
            larger = allocate(max(stop, 2 * len(self.buffer)))
            larger[: self._length] = self._view[: self._length]
            self.buffer, self._view = larger, memoryview(larger)
        self._view[self._length : stop] = data
        self._length = stop

    def add(self, chunk_hash: bytes, plain: bytes | memoryview, stored: bytes | memoryview, codec: Codec) -> ChunkRef:
        offset = self._length
        self._append(stored)
        self._slots += _SLOT.pack(chunk_hash, offset, len(stored), len(plain), codec)
        self.slot_count += 1
        return ChunkRef(chunk_hash, self.ulid, offset, len(stored), len(plain), codec)

    def finish(self) -> tuple[memoryview, PackInfo]:
        """The whole object, as long as its buffer is not used again, and what a run must know of it."""
        slots_offset = self._length
        digest = blake3(self._slots).digest()
        self._append(self._slots)
        self._append(_FOOTER.pack(slots_offset, self.slot_count, digest, VERSION, 0, MAGIC))
        return self._view[: self._length], PackInfo(self.ulid, self._length, self.slot_count, digest)


class PackInfo:
    """What a run says of a pack: enough to read and verify its slot table without trusting the pack."""

    __slots__ = ("object_bytes", "slot_count", "slots_digest", "ulid")

    def __init__(self, ulid: bytes, object_bytes: int, slot_count: int, slots_digest: bytes) -> None:
        self.ulid = ulid
        self.object_bytes = object_bytes
        self.slot_count = slot_count
        self.slots_digest = slots_digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackInfo) and self.as_tuple() == other.as_tuple()

    def __hash__(self) -> int:
        return hash(self.ulid)

    def as_tuple(self) -> tuple[bytes, int, int, bytes]:
        return self.ulid, self.object_bytes, self.slot_count, self.slots_digest

    @property
    def tail_bytes(self) -> int:
        """How many bytes at the end of the object hold slot table and footer."""
        return self.slot_count * SLOT_BYTES + FOOTER_BYTES


def encode_chunk(plain: bytes | memoryview) -> tuple[bytes | memoryview, Codec]:
    """The stored form of a chunk: zstd where it helps; of a chunk of more than 8 KiB a probe says whether to try."""
    if len(plain) < 64:
        return plain, Codec.RAW
    if len(plain) > _PROBED_BYTES and not _may_help(plain):
        return plain, Codec.RAW
    stored = zstd.compress(plain)
    return (stored, Codec.ZSTD) if len(stored) < len(plain) else (plain, Codec.RAW)


def _may_help(plain: bytes | memoryview) -> bool:
    """Whether zstd takes at least a twentieth off two samples, from a quarter and three quarters of the way."""
    length = 512 if len(plain) < _LARGE_BYTES else 4096
    first, second = len(plain) // 4, len(plain) * 3 // 4
    sample = bytes(plain[first : first + length]) + bytes(plain[second : second + length])
    return len(zstd.compress(sample)) * 20 < len(sample) * 19


def decode_chunk(chunk: ChunkRef, stored: bytes | memoryview) -> bytes | memoryview:
    """The plain bytes of a chunk, verified against its hash; Corrupt for anything else."""
    if len(stored) != chunk.stored_bytes:
        raise Corrupt(f"a chunk has {len(stored)} stored bytes where {chunk.stored_bytes} were promised")
    plain: bytes | memoryview = stored
    if chunk.codec == Codec.ZSTD:
        plain = zstd.decompress(stored, chunk.plain_bytes)
    if blake3(plain).digest() != chunk.hash:
        raise Corrupt("a chunk's bytes do not have its hash")
    return plain


def parse_header(data: bytes | memoryview) -> bytes:
    """The ULID that a pack's first bytes name."""
    if len(data) < HEADER_BYTES:
        raise Corrupt("a pack is too short for its header")
    magic, version, _, features, ulid = _HEADER.unpack_from(data)
    check_version(MAGIC, magic, version, features)
    return bytes(ulid)


def parse_tail(ulid: bytes, data: bytes, object_bytes: int, slots_digest: bytes | None = None) -> Iterator[ChunkRef]:
    """The chunks that a pack's last bytes name.

    ``data`` is the end of the object, at least slot table and footer; ``slots_digest`` is what a run says.
    """
    if len(data) < FOOTER_BYTES:
        raise Corrupt("a pack is too short for its footer")
    slots_offset, count, digest, version, _, magic = _FOOTER.unpack_from(data, len(data) - FOOTER_BYTES)
    check_version(MAGIC, magic, version, 0)
    size = count * SLOT_BYTES
    if (
        slots_offset < HEADER_BYTES
        or slots_offset + size + FOOTER_BYTES != object_bytes
        or size + FOOTER_BYTES > len(data)
    ):
        raise Corrupt("a pack's slot table is not where its footer says")
    slots = data[len(data) - FOOTER_BYTES - size : len(data) - FOOTER_BYTES]
    if blake3(slots).digest() != digest or (slots_digest is not None and digest != slots_digest):
        raise Corrupt("a pack's slot table does not have its digest")
    return _parse_slots(ulid, slots, slots_offset)


def _parse_slots(ulid: bytes, slots: bytes, slots_offset: int) -> Iterator[ChunkRef]:
    position = HEADER_BYTES
    for chunk_hash, offset, stored_bytes, plain_bytes, codec in _SLOT.iter_unpack(slots):
        if offset != position or not 0 < stored_bytes <= plain_bytes <= CHUNK_BYTES_MAX or codec not in (0, 1):
            raise Corrupt("a pack's slot table is impossible")
        position += stored_bytes
        yield ChunkRef(chunk_hash, ulid, offset, stored_bytes, plain_bytes, codec)
    if position != slots_offset:
        raise Corrupt("a pack holds bytes that no slot names")
