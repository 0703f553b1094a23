"""A run: an immutable, sorted table of entries that covers seq_first..seq_last. Normative table: docs/format/run.md.

    header   40 B   magic, version, feature bits, level, seq range
    blocks          zstd, each about 64 KiB before: columns of entries, all but the chunks' hashes
    hashes          32 B a chunk, in the blocks' order: they do not compress and a listing does not need them
    tail            zstd: pack table and, for each block, first key, place and digest
    footer   64 B   place of the tail, its BLAKE3-256, version, magic

A manifest names the digest of tail and footer together, the tail names each block's, an entry names its chunks':
so whatever is read is verified from the head down, and a lookup costs the tail and one block with its hashes.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import (
    CHUNKS_PER_FILE_MAX,
    HASH_BYTES,
    ULID_BYTES,
    ChunkRef,
    Codec,
    Entry,
    Kind,
    check_entry,
)
from synclib.core.frame import VERSION, check_version
from synclib.core.names import LEVELS, check_directory, is_reserved
from synclib.core.pack import FOOTER_BYTES as PACK_FOOTER_BYTES
from synclib.core.pack import HEADER_BYTES as PACK_HEADER_BYTES
from synclib.core.pack import SLOT_BYTES, PackInfo
from synclib.errors import Corrupt, Unsupported

MAGIC = b"BXLR"
BLOCK_PLAIN_TARGET = 64 << 10
# One entry must fit in one block; this bounds what a reader may be made to allocate.
BLOCK_PLAIN_MAX = 32 << 20
TAIL_PLAIN_MAX = 256 << 20
# zstd makes what it cannot compress longer by less than 1/128.
TAIL_STORED_MAX = TAIL_PLAIN_MAX + (TAIL_PLAIN_MAX >> 7)
_BLOCK_STORED_MAX = BLOCK_PLAIN_MAX + (BLOCK_PLAIN_MAX >> 7)
BLOCK_DIGEST_BYTES = 16  # second preimages cost 2^128; collisions are only the publisher's own

_HEADER = struct.Struct("<4sHHQB7xQQ")
_FOOTER = struct.Struct("<QII32sHH4x4s4x")
HEADER_BYTES = _HEADER.size
FOOTER_BYTES = _FOOTER.size


class BlockInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a block is and what it must be."""

    first_key: bytes
    offset: int
    stored_bytes: int
    plain_bytes: int
    entry_count: int
    hash_first: int  # index of its first hash in the hash region
    hash_count: int
    digest: bytes  # BLAKE3, 16 bytes, of the stored block
    hashes_digest: bytes  # BLAKE3, 16 bytes, of its hashes


class Tail(msgspec.Struct, array_like=True, frozen=True):
    """What opens a run."""

    level: int
    seq_first: int
    seq_last: int
    scanned_at_ns: int  # wall time at which the scan behind it began; the latest, where runs were merged
    entry_count: int
    tombstone_count: int
    hashes_offset: int
    packs: list[tuple[bytes, int, int, bytes]]  # PackInfo.as_tuple
    blocks: list[BlockInfo]
    last_key: bytes


class _Columns(msgspec.Struct, array_like=True, frozen=True):
    """A block before zstd, as MessagePack. One array a column lets zstd see like beside like."""

    directories: list[bytes]
    directory_counts: list[int]
    names: list[bytes]
    kinds: bytes
    modes: list[int]
    mtime_deltas_ns: list[int]
    sizes: list[int]
    chunk_counts: list[int]  # of each file
    packs: list[int]  # of each chunk: index into the run's pack table
    offset_gaps: list[int]  # of each chunk: distance from where the chunk before it ended
    stored: list[int]  # of each chunk
    plains: list[int]  # of each chunk of a file that has several; else the file's size says it
    codecs: bytes  # one a chunk
    targets: list[bytes]  # of each symlink
    extras: list[tuple[int, tuple[tuple[str, bytes], ...]]]  # (index of the entry, its extra)


_block_encoder = msgspec.msgpack.Encoder()
_block_decoder = msgspec.msgpack.Decoder(_Columns)
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

    def index(self, ulid: bytes) -> int:
        return self._index[ulid]

    def __contains__(self, ulid: bytes) -> bool:
        return ulid in self._index


def encode_header(level: str, seq_first: int, seq_last: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, 0, 0, LEVELS.index(level) + 1, seq_first, seq_last)


def encode_block(entries: Sequence[Entry], table: PackTable) -> tuple[bytes, int, bytes]:
    """(stored block, its length before zstd, its chunks' hashes) of entries that are already sorted."""
    directories: list[bytes] = []
    directory_counts: list[int] = []
    deltas, mtime_ns = [], 0
    packs: list[int] = []
    gaps: list[int] = []
    stored: list[int] = []
    plains: list[int] = []
    codecs = bytearray()
    hashes: list[bytes] = []
    place = (b"", 0)
    for entry in entries:
        if not directories or entry.directory != directories[-1]:
            directories.append(entry.directory)
            directory_counts.append(0)
        directory_counts[-1] += 1
        deltas.append(entry.mtime_ns - mtime_ns)
        mtime_ns = entry.mtime_ns
        for chunk in entry.chunks:
            packs.append(table.index(chunk.pack))
            gaps.append(chunk.offset - (place[1] if place[0] == chunk.pack else 0))
            place = (chunk.pack, chunk.offset + chunk.stored_bytes)
            stored.append(chunk.stored_bytes)
            codecs.append(chunk.codec)
            hashes.append(chunk.hash)
        if len(entry.chunks) > 1:
            plains.extend(chunk.plain_bytes for chunk in entry.chunks)
    columns = _Columns(
        directories,
        directory_counts,
        [entry.name for entry in entries],
        bytes([entry.kind for entry in entries]),
        [entry.mode for entry in entries],
        deltas,
        [entry.size for entry in entries if entry.kind == Kind.FILE],
        [len(entry.chunks) for entry in entries if entry.kind == Kind.FILE],
        packs,
        gaps,
        stored,
        plains,
        bytes(codecs),
        [entry.target for entry in entries if entry.kind == Kind.SYMLINK],
        [(index, entry.extra) for index, entry in enumerate(entries) if entry.extra],
    )
    plain = _block_encoder.encode(columns)
    if len(plain) > BLOCK_PLAIN_MAX:
        raise Unsupported(f"an entry needs {len(plain)} bytes in a run, {BLOCK_PLAIN_MAX} is the most")
    return zstd.compress(plain), len(plain), b"".join(hashes)


def decode_block(
    info: BlockInfo, tail: Tail, stored: bytes | memoryview, hashes: bytes | memoryview | None
) -> list[Entry]:
    """The entries of a block, verified and checked; without ``hashes`` chunks have empty hashes.

    Anything that is not exactly a block written by :func:`encode_block` raises Corrupt.
    """
    if len(stored) != info.stored_bytes or blake3(stored).digest(BLOCK_DIGEST_BYTES) != info.digest:
        raise Corrupt("a block of a run does not have its digest")
    if hashes is not None and (
        len(hashes) != info.hash_count * HASH_BYTES or blake3(hashes).digest(BLOCK_DIGEST_BYTES) != info.hashes_digest
    ):
        raise Corrupt("the hashes of a block of a run do not have their digest")
    try:
        columns = _block_decoder.decode(zstd.decompress(stored, info.plain_bytes))
        entries = list(_entries(columns, tail, b"" if hashes is None else bytes(hashes)))
    except (msgspec.MsgspecError, IndexError, StopIteration, RuntimeError, OverflowError, ValueError) as error:
        raise Corrupt(f"a block of a run does not decode: {error}") from error
    if len(entries) != info.entry_count or not entries or entries[0].key != info.first_key:
        raise Corrupt("a block of a run does not hold what its index says")
    keys = [entry.key for entry in entries]
    if any(first >= second for first, second in itertools.pairwise(keys)):
        raise Corrupt("a block of a run is not sorted")
    return entries


def _entries(columns: _Columns, tail: Tail, hashes: bytes) -> Iterator[Entry]:
    count = len(columns.names)
    lengths = (
        len(columns.kinds),
        len(columns.modes),
        len(columns.mtime_deltas_ns),
        sum(columns.directory_counts),
    )
    if any(length != count for length in lengths) or len(columns.directories) != len(columns.directory_counts):
        raise Corrupt("the columns of a block differ in length")
    for directory in columns.directories:
        if is_reserved(b"", check_directory(directory).partition(b"/")[0]):
            raise Corrupt(f"an entry would lie in boxlink's own {directory!r}")
    directories = (
        directory
        for directory, number in zip(columns.directories, columns.directory_counts, strict=True)
        for _ in range(number)
    )
    extras = dict(columns.extras)
    chunks = _Chunks(columns, tail, hashes)
    sizes = iter(zip(columns.sizes, columns.chunk_counts, strict=True))
    targets = iter(columns.targets)
    mtime_ns = 0
    for index in range(count):
        kind = columns.kinds[index]
        mtime_ns += columns.mtime_deltas_ns[index]
        size, target = 0, b""
        refs: tuple[ChunkRef, ...] = ()
        if kind == Kind.FILE:
            size, chunk_count = next(sizes)
            refs = chunks.take(size, chunk_count)
        elif kind == Kind.SYMLINK:
            target = next(targets)
        elif kind not in (Kind.DIRECTORY, Kind.TOMBSTONE):
            raise Corrupt(f"an entry is of kind {kind}, which this version does not know")
        yield check_entry(
            Entry(
                next(directories),
                columns.names[index],
                kind,
                columns.modes[index],
                mtime_ns,
                size,
                refs,
                target,
                extras.get(index, ()),
            )
        )
    if next(sizes, None) is not None or next(targets, None) is not None or not chunks.is_spent:
        raise Corrupt("a block of a run holds more than its entries name")


class _Chunks:
    """Hands out the chunks of a block's files in order."""

    def __init__(self, columns: _Columns, tail: Tail, hashes: bytes) -> None:
        count = len(columns.packs)
        lengths = (len(columns.offset_gaps), len(columns.stored), len(columns.codecs))
        if any(length != count for length in lengths) or (hashes and len(hashes) != count * HASH_BYTES):
            raise Corrupt("the chunk columns of a block differ in length")
        self._columns = columns
        self._packs = tail.packs
        self._hashes = hashes
        self._next = 0
        self._next_plain = 0
        self._place = (-1, 0)

    @property
    def is_spent(self) -> bool:
        return self._next == len(self._columns.packs) and self._next_plain == len(self._columns.plains)

    def take(self, size: int, count: int) -> tuple[ChunkRef, ...]:
        if count == 1:
            return (self._one(size),)
        if not 0 <= count <= min(CHUNKS_PER_FILE_MAX, len(self._columns.packs)):
            raise Corrupt("a file has an impossible number of chunks")
        first = self._next_plain
        plains = self._columns.plains[first : first + count]
        if len(plains) != count:
            raise Corrupt("a block lacks the lengths of chunks")
        self._next_plain += count
        return tuple(self._one(plain) for plain in plains)

    def _one(self, plain_bytes: int) -> ChunkRef:
        index = self._next
        pack = self._columns.packs[index]
        if pack < 0:
            raise Corrupt("a chunk names an impossible pack")
        ulid = self._packs[pack][0]
        stored_bytes = self._columns.stored[index]
        offset = self._columns.offset_gaps[index] + (self._place[1] if self._place[0] == pack else 0)
        self._place = (pack, offset + stored_bytes)
        self._next += 1
        chunk_hash = self._hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return ChunkRef(chunk_hash, ulid, offset, stored_bytes, plain_bytes, self._columns.codecs[index])


def encode_tail(tail: Tail, tail_offset: int) -> bytes:
    """The end of a run object: tail and footer."""
    plain = msgspec.msgpack.encode(tail)
    stored = zstd.compress(plain)
    return stored + _FOOTER.pack(tail_offset, len(stored), len(plain), blake3(stored).digest(), VERSION, 0, MAGIC)


def decode_tail(data: bytes | memoryview, object_bytes: int, digest: bytes | None = None) -> Tail:
    """The tail from the last bytes of a run object, which must be exactly tail and footer.

    ``digest`` is what a manifest says: BLAKE3-256 of ``data``. Everything in it is bounded and checked.
    """
    if digest is not None and blake3(data).digest() != digest:
        raise Corrupt("a run's tail does not have the digest that the manifest names")
    if len(data) < FOOTER_BYTES:
        raise Corrupt("a run is too short for its footer")
    offset, stored_bytes, plain_bytes, stored_digest, version, _, magic = _FOOTER.unpack_from(
        data, len(data) - FOOTER_BYTES
    )
    check_version(MAGIC, magic, version, 0)
    if stored_bytes + FOOTER_BYTES != len(data) or offset + len(data) != object_bytes or plain_bytes > TAIL_PLAIN_MAX:
        raise Corrupt("a run's tail is not where its footer says")
    stored = data[:stored_bytes]
    if blake3(stored).digest() != stored_digest:
        raise Corrupt("a run's tail does not have its digest")
    try:
        tail = _tail_decoder.decode(zstd.decompress(stored, plain_bytes))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"a run's tail does not decode: {error}") from error
    return _check_tail(tail, offset)


def _check_tail(tail: Tail, tail_offset: int) -> Tail:
    position, hashes, key = HEADER_BYTES, 0, b""
    for block in tail.blocks:
        if (
            block.offset != position
            or not 0 < block.stored_bytes <= _BLOCK_STORED_MAX
            or not 0 < block.plain_bytes <= BLOCK_PLAIN_MAX
            or not 0 < block.entry_count <= block.plain_bytes
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
        or tail.last_key < key
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


__all__ = [
    "BlockInfo",
    "Codec",
    "PackTable",
    "Tail",
    "decode_block",
    "decode_tail",
    "encode_block",
    "encode_tail",
]
