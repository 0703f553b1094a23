"""A run: an immutable, sorted table of entries that covers seq_first..seq_last. Normative table: docs/format/run.md.

    header   40 B   magic, version, feature bits, level, seq range
    blocks          zstd, each about 64 KiB before: columns of entries, all but the chunks' hashes
    hashes          32 B a chunk, in the blocks' order: they do not compress and a listing does not need them
    tail            zstd: pack table; for each block its first key, place and digest; of a small diff a Bloom filter
    footer   64 B   place of the tail, its BLAKE3-256, version, magic

A manifest names the digest of tail and footer together, the tail names each block's, an entry names its chunks':
so whatever is read is verified from the head down, and a lookup costs the tail and one block with its hashes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from synclib.core.block import BLOCK_PLAIN_MAX, BlockInfo
from synclib.core.entry import HASH_BYTES, ULID_BYTES
from synclib.core.frame import DECODE_ERRORS, VERSION, check_version
from synclib.core.names import LEVELS
from synclib.core.pack import FOOTER_BYTES as PACK_FOOTER_BYTES
from synclib.core.pack import HEADER_BYTES as PACK_HEADER_BYTES
from synclib.core.pack import SLOT_BYTES, PackInfo
from synclib.core.tail import open_tail, seal_tail
from synclib.errors import Corrupt

MAGIC = b"BXLR"
_BLOCK_STORED_MAX = BLOCK_PLAIN_MAX + (BLOCK_PLAIN_MAX >> 7)
# A filter pays where it is smaller than the block (and its hashes) that it spares: some 60 KB.
BLOOM_ENTRIES_MAX = 50_000
BLOOM_BYTES_MAX = BLOOM_ENTRIES_MAX * 2

_HEADER = struct.Struct("<4sHHQB7xQQ")
HEADER_BYTES = _HEADER.size


class Tail(msgspec.Struct, array_like=True, frozen=True):
    """What opens a run."""

    level: int
    seq_first: int
    seq_last: int
    entry_count: int
    tombstone_count: int
    hashes_offset: int
    packs: list[tuple[bytes, int, int, bytes]]  # PackInfo.as_tuple
    blocks: list[BlockInfo]
    last_key: bytes
    bloom: bytes  # of all keys, in a diff that has not too many; else empty


_tail_decoder = msgspec.msgpack.Decoder(Tail)


class PackTable:
    """The packs a run refers to, each with a small number."""

    def __init__(self) -> None:
        self.infos: list[PackInfo] = []
        self._index: dict[bytes, int] = {}

    def add(self, info: PackInfo) -> None:
        if info.ulid not in self._index:
            self._index[info.ulid] = len(self.infos)
            self.infos.append(info)

    def numbers(self, ulids: Iterable[bytes]) -> list[int]:
        """The numbers of packs that were added."""
        return [self._index[ulid] for ulid in ulids]

    def __contains__(self, ulid: bytes) -> bool:
        return ulid in self._index


def encode_header(level: str, seq_first: int, seq_last: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, 0, 0, LEVELS.index(level) + 1, seq_first, seq_last)


def encode_tail(tail: Tail, tail_offset: int) -> bytes:
    """The end of a run object: tail and footer."""
    return seal_tail(MAGIC, msgspec.msgpack.encode(tail), tail_offset)


def decode_tail(data: bytes | memoryview, object_bytes: int, digest: bytes | None = None) -> Tail:
    """The tail from the last bytes of a run object, which must be exactly tail and footer.

    ``digest`` is what a manifest says: BLAKE3-256 of ``data``. Everything in it is bounded and checked.
    """
    plain, offset = open_tail(MAGIC, "run", data, object_bytes, digest)
    try:
        tail = _tail_decoder.decode(plain)
    except DECODE_ERRORS as error:
        raise Corrupt(f"a run's tail does not decode: {error}") from error
    return _check_tail(tail, offset)


def _check_tail(tail: Tail, tail_offset: int) -> Tail:
    position, hashes, key = HEADER_BYTES, 0, b""
    for block in tail.blocks:
        if (
            block.offset != position
            or not 0 < block.stored_bytes <= _BLOCK_STORED_MAX
            or not 0 < block.plain_bytes <= BLOCK_PLAIN_MAX
            or not 0 <= block.tombstone_count <= block.entry_count <= block.plain_bytes
            or not block.entry_count
            or len(block.packs) > block.hash_count
            or not all(0 <= number < len(tail.packs) for number in block.packs)
            or block.hash_first != hashes
            or not 0 <= block.hash_count <= block.plain_bytes
            or block.first_key <= key
        ):
            raise Corrupt("a run's block index is impossible")
        position += block.stored_bytes
        hashes += block.hash_count
        key = block.first_key
    if (
        tail.hashes_offset != position
        or position + hashes * HASH_BYTES != tail_offset
        or tail.entry_count != sum(block.entry_count for block in tail.blocks)
        or not 0 < tail.level <= len(LEVELS)
        or not 0 < tail.seq_first <= tail.seq_last < 1 << 63
        or tail.tombstone_count != sum(block.tombstone_count for block in tail.blocks)
        or tail.last_key < key
        or len(tail.bloom) > BLOOM_BYTES_MAX
        or not all(map(_is_possible, tail.packs))
    ):
        raise Corrupt("a run's tail is impossible")
    return tail


def _is_possible(pack: tuple[bytes, int, int, bytes]) -> bool:
    """Whether a pack of that length has room for that many slots, each of a chunk of at least a byte."""
    ulid, object_bytes, slot_count, digest = pack
    room = object_bytes - PACK_HEADER_BYTES - PACK_FOOTER_BYTES
    return (
        len(ulid) == ULID_BYTES
        and len(digest) == HASH_BYTES
        and object_bytes < 1 << 41
        and 0 <= slot_count * (SLOT_BYTES + 1) <= room
    )


def check_header(data: bytes | memoryview, tail: Tail) -> None:
    """Corrupt unless a run's first bytes say what its tail says."""
    if len(data) < HEADER_BYTES:
        raise Corrupt("a run is too short for its header")
    magic, version, _, features, level, seq_first, seq_last = _HEADER.unpack_from(data)
    check_version(MAGIC, magic, version, features)
    if (level, seq_first, seq_last) != (tail.level, tail.seq_first, tail.seq_last):
        raise Corrupt("a run's header and tail disagree")
