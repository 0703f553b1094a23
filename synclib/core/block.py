"""A block of a run: some thousand sorted entries as columns. Normative table: docs/format/run.md.

A block is decoded column by column and checked as a whole, which costs little; entries are made when they are asked
for. It names the packs it refers to by its own small numbers, so that it can be copied from run to run as it is.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import (
    ADDRESS_MAX,
    CHUNK_BYTES_MAX,
    CHUNKS_PER_FILE_MAX,
    HASH_BYTES,
    OFFSET_MAX,
    TIME_NS_MAX,
    TIME_NS_MIN,
    ChunkRef,
    Entry,
    Kind,
    address_units,
    check_extra,
    check_target,
)
from synclib.core.frame import DECODE_ERRORS
from synclib.core.names import NAME_BYTES_MAX, check_component, check_directory, is_reserved
from synclib.errors import Corrupt, Unsupported

BLOCK_PLAIN_TARGET = 64 << 10
# One entry must fit in one block; this bounds what a reader may be made to allocate.
BLOCK_PLAIN_MAX = 32 << 20
BLOCK_DIGEST_BYTES = 16  # second preimages cost 2^128; collisions are only the publisher's own


class BlockInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a block is and what it must be."""

    first_key: bytes
    offset: int
    stored_bytes: int
    plain_bytes: int
    entry_count: int
    tombstone_count: int
    hash_first: int  # index of its first hash in the hash region
    hash_count: int
    packs: list[int]  # what the block's own pack numbers mean: indices into the run's pack table
    digest: bytes  # BLAKE3, 16 bytes, of the stored block
    hashes_digest: bytes  # BLAKE3, 16 bytes, of its hashes


class Columns(msgspec.Struct, array_like=True, frozen=True):
    """A block before zstd, as MessagePack. One array a column lets zstd see like beside like."""

    directories: list[bytes]
    directory_counts: list[int]
    names: list[bytes]
    kinds: bytes
    modes: list[int]
    mtime_deltas_ns: list[int]
    sizes: list[int]
    chunk_counts: list[int]  # of each file
    packs: list[int]  # of each chunk: index into the block's list of packs
    offset_gaps: list[int]  # of each chunk: distance from where the chunk before it ended
    stored: list[int]  # of each chunk
    plains: list[int]  # of each chunk of a file that has several; else the file's size says it
    codecs: bytes  # one a chunk
    targets: list[bytes]  # of each symlink
    extras: list[tuple[int, tuple[tuple[str, bytes], ...]]]  # (index of the entry, its extra)
    racy: list[int]  # indices of the entries that are racy
    address_gaps: list[int]  # of each file with content: distance from where the one before it ended


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Columns)


class EncodedBlock(msgspec.Struct, frozen=True):
    """A block as it is stored, and what its index must say."""

    stored: bytes
    plain_bytes: int
    hashes: bytes
    packs: list[bytes]  # ULIDs, in the order of the block's own numbers


def encode_block(entries: Sequence[Entry]) -> EncodedBlock:
    """A block of entries that are already sorted."""
    directories: list[bytes] = []
    directory_counts: list[int] = []
    deltas, mtime_ns = [], 0
    numbers: dict[bytes, int] = {}
    packs: list[int] = []
    gaps: list[int] = []
    stored: list[int] = []
    plains: list[int] = []
    codecs = bytearray()
    hashes: list[bytes] = []
    address_gaps: list[int] = []
    place, address_end = (b"", 0), 0
    for entry in entries:
        if not directories or entry.directory != directories[-1]:
            directories.append(entry.directory)
            directory_counts.append(0)
        directory_counts[-1] += 1
        deltas.append(entry.mtime_ns - mtime_ns)
        mtime_ns = entry.mtime_ns
        for chunk in entry.chunks:
            packs.append(numbers.setdefault(chunk.pack, len(numbers)))
            gaps.append(chunk.offset - (place[1] if place[0] == chunk.pack else 0))
            place = (chunk.pack, chunk.offset + chunk.stored_bytes)
            stored.append(chunk.stored_bytes)
            codecs.append(chunk.codec)
            hashes.append(chunk.hash)
        if len(entry.chunks) > 1:
            plains.extend(chunk.plain_bytes for chunk in entry.chunks)
        if entry.size:
            address_gaps.append(entry.address - address_end)
            address_end = entry.address + address_units(entry.size)
    columns = Columns(
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
        [index for index, entry in enumerate(entries) if entry.is_racy],
        address_gaps,
    )
    plain = _encoder.encode(columns)
    if len(plain) > BLOCK_PLAIN_MAX:
        raise Unsupported(f"an entry needs {len(plain)} bytes in a run, {BLOCK_PLAIN_MAX} is the most")
    return EncodedBlock(zstd.compress(plain), len(plain), b"".join(hashes), list(numbers))


def decode_block(
    info: BlockInfo, pack_table: Sequence[bytes], stored: bytes | memoryview, hashes: bytes | memoryview | None
) -> Block:
    """A block, verified and checked; without ``hashes`` chunks have empty hashes. ``pack_table``: the run's ULIDs.

    Anything that is not exactly a block written by :func:`encode_block` raises Corrupt, at the latest when the
    entries concerned are made.
    """
    check_block(info, stored, hashes)
    try:
        columns = _decoder.decode(zstd.decompress(stored, info.plain_bytes))
    except DECODE_ERRORS as error:
        raise Corrupt(f"a block of a run does not decode: {error}") from error
    return Block(info, columns, pack_table, None if hashes is None else bytes(hashes))


def check_block(info: BlockInfo, stored: bytes | memoryview, hashes: bytes | memoryview | None) -> None:
    """Corrupt unless a block and, where given, its hashes are those that a run's index names."""
    if len(stored) != info.stored_bytes or blake3(stored).digest(BLOCK_DIGEST_BYTES) != info.digest:
        raise Corrupt("a block of a run does not have its digest")
    if hashes is not None and (
        len(hashes) != info.hash_count * HASH_BYTES or blake3(hashes).digest(BLOCK_DIGEST_BYTES) != info.hashes_digest
    ):
        raise Corrupt("the hashes of a block of a run do not have their digest")


class Block:
    """Decoded columns. ``keys`` are the sort keys of its entries."""

    def __init__(self, info: BlockInfo, columns: Columns, pack_table: Sequence[bytes], hashes: bytes | None) -> None:
        _check_lengths(info, columns)
        _check_names(columns)
        self._columns = columns
        self._hashes = hashes
        self._packs = [pack_table[index] for index in info.packs]
        self._chunk_starts = list(itertools.accumulate(columns.chunk_counts, initial=0))
        self._mtimes_ns = list(itertools.accumulate(columns.mtime_deltas_ns))
        self._ordinals = _ordinals(columns.kinds)
        _check_values(columns, self._mtimes_ns, self._chunk_starts[-1])
        self._extras = dict(columns.extras)
        self._racy = frozenset(columns.racy)
        self._addresses: list[int] | None = None
        self._chunks: list[ChunkRef] | None = None
        self.directories, self.keys = _keys(columns)
        if self.keys[0] != info.first_key or not all(map(operator.lt, self.keys, self.keys[1:])):
            raise Corrupt("a block of a run is not sorted, or not the one that its index says")

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, key: bytes) -> Entry | None:
        """The entry of a key, tombstones included."""
        at = bisect.bisect_left(self.keys, key)
        return self.entry(at) if at < len(self.keys) and self.keys[at] == key else None

    def kind(self, index: int) -> int:
        return self._columns.kinds[index]

    def entry(self, index: int) -> Entry:
        columns = self._columns
        kind = columns.kinds[index]
        size, target, address = 0, b"", 0
        chunks: tuple[ChunkRef, ...] = ()
        if kind == Kind.FILE:
            ordinal = self._ordinals[index]
            size, address = columns.sizes[ordinal], self._address(ordinal)
            chunks = self._chunks_of(ordinal)
            if sum(chunk.plain_bytes for chunk in chunks) != size:
                raise Corrupt("a file's size is not the sum of its chunks")
        elif kind == Kind.SYMLINK:
            target = columns.targets[self._ordinals[index]]
        return Entry(
            self.directories[index],
            columns.names[index],
            kind,
            columns.modes[index],
            self._mtimes_ns[index],
            size,
            chunks,
            target,
            self._extras.get(index, ()),
            index in self._racy,
            address,
        )

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[Entry]:
        """Entries by their place in the block."""
        return map(self.entry, range(start, len(self.keys) if stop is None else stop))

    def _address(self, ordinal: int) -> int:
        if self._addresses is None:
            self._addresses = _addresses(self._columns)
        return self._addresses[ordinal]

    def _chunks_of(self, ordinal: int) -> tuple[ChunkRef, ...]:
        if self._chunks is None:
            self._chunks = _chunk_refs(self._columns, self._packs, self._hashes)
        return tuple(self._chunks[self._chunk_starts[ordinal] : self._chunk_starts[ordinal + 1]])


def _check_lengths(info: BlockInfo, columns: Columns) -> None:
    count, kinds = info.entry_count, columns.kinds
    files, links = kinds.count(Kind.FILE), kinds.count(Kind.SYMLINK)
    tombstones = kinds.count(Kind.TOMBSTONE)
    chunk_count = len(columns.packs)
    if (
        len(columns.directories) != len(columns.directory_counts)
        or min(columns.directory_counts, default=0) < 1
        or sum(columns.directory_counts) != count
        or any(len(column) != count for column in (columns.names, kinds, columns.modes, columns.mtime_deltas_ns))
        or (len(columns.sizes), len(columns.chunk_counts), len(columns.targets)) != (files, files, links)
        or files + links + kinds.count(Kind.DIRECTORY) + tombstones != count
        or tombstones != info.tombstone_count
        or chunk_count != info.hash_count
        or any(len(column) != chunk_count for column in (columns.offset_gaps, columns.stored, columns.codecs))
        or any(not 0 <= index < count for index in columns.racy)
        or len(columns.address_gaps) != files - columns.sizes.count(0)
        or any(not 0 <= index < count for index, _ in columns.extras)
    ):
        raise Corrupt("the columns of a block do not belong together")


def _check_names(columns: Columns) -> None:
    """All names at once: what none of them may hold, then what none of them may be."""
    joined = b"\0".join(columns.names)
    lengths = list(map(len, columns.names))
    if (
        b"/" in joined
        or joined.count(b"\0") != len(columns.names) - 1
        or not 0 < min(lengths) <= max(lengths) <= NAME_BYTES_MAX
        or not {b".", b".."}.isdisjoint(columns.names)
    ):
        for name in columns.names:
            check_component(name)
        raise Corrupt("an entry's name would leave its directory")
    position = 0
    for directory, number in zip(columns.directories, columns.directory_counts, strict=True):
        if is_reserved(b"", check_directory(directory).partition(b"/")[0]):
            raise Corrupt(f"an entry would lie in boxlink's own {directory!r}")
        if not directory:
            for name in columns.names[position : position + number]:
                if is_reserved(directory, name):
                    raise Corrupt(f"an entry would overwrite boxlink's own {name!r}")
        position += number


def _check_values(columns: Columns, mtimes_ns: list[int], chunk_count: int) -> None:
    counts = columns.chunk_counts
    if not (0 <= min(columns.modes) <= max(columns.modes) <= 0o7777):
        raise Corrupt("an entry has an impossible mode")
    if not (TIME_NS_MIN <= min(mtimes_ns) <= max(mtimes_ns) <= TIME_NS_MAX):
        raise Corrupt("an entry's time is out of range")
    if counts and not (0 <= min(counts) <= max(counts) <= CHUNKS_PER_FILE_MAX):
        raise Corrupt("a file has an impossible number of chunks")
    if chunk_count != len(columns.packs) or len(columns.plains) != sum(count for count in counts if count > 1):
        raise Corrupt("a block lacks chunks that its files name, or has others")
    for target in columns.targets:
        check_target(target)
    for _, extra in columns.extras:
        check_extra(extra)


def _ordinals(kinds: bytes) -> list[int]:
    """For each file, how many files come before it in the block; for each symlink, how many symlinks; else nothing."""
    ordinals: list[int] = []
    files = links = 0
    for kind in kinds:
        if kind == Kind.FILE:
            ordinals.append(files)
            files += 1
        else:
            ordinals.append(links)
            links += kind == Kind.SYMLINK
    return ordinals


def _addresses(columns: Columns) -> list[int]:
    """The address of each file, 0 of one without content."""
    addresses: list[int] = []
    end = 0
    gaps = iter(columns.address_gaps)
    for size in columns.sizes:
        if not size:
            addresses.append(0)
            continue
        address = end + next(gaps)
        end = address + address_units(size)
        if address < 0 or size < 0 or end > ADDRESS_MAX:
            raise Corrupt("a file's address is impossible")
        addresses.append(address)
    return addresses


def _keys(columns: Columns) -> tuple[list[bytes], list[bytes]]:
    """(directory, sort key) of each entry, as two columns."""
    directories: list[bytes] = []
    keys: list[bytes] = []
    position = 0
    for directory, number in zip(columns.directories, columns.directory_counts, strict=True):
        start = directory.replace(b"/", b"\0") + b"\0\0"
        directories += [directory] * number
        keys += [start + name for name in columns.names[position : position + number]]
        position += number
    return directories, keys


def _chunk_refs(columns: Columns, packs: list[bytes], hashes: bytes | None) -> list[ChunkRef]:
    """All chunks of a block, checked."""
    plains = _plains(columns)
    refs: list[ChunkRef] = []
    last, end = -1, 0
    rows = zip(columns.packs, columns.offset_gaps, columns.stored, plains, columns.codecs, strict=True)
    for index, (pack, gap, stored, plain, codec) in enumerate(rows):
        offset = gap + end if pack == last else gap
        # A raw chunk (codec 0) is stored as it is, a zstd frame (codec 1) only where it is shorter or as long.
        if (
            not 0 <= pack < len(packs)
            or not 0 < stored <= plain <= CHUNK_BYTES_MAX
            or codec > 1
            or (codec == 0 and stored != plain)
            or not 0 <= offset < OFFSET_MAX
        ):
            raise Corrupt("a chunk's place is impossible")
        last, end = pack, offset + stored
        chunk_hash = b"" if hashes is None else hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
        refs.append(ChunkRef(chunk_hash, packs[pack], offset, stored, plain, codec))
    return refs


def _plains(columns: Columns) -> list[int]:
    """The plain length of each chunk: a single one's is its file's size."""
    if not columns.plains:
        return [size for size, count in zip(columns.sizes, columns.chunk_counts, strict=True) if count == 1]
    plains: list[int] = []
    position = 0
    for size, count in zip(columns.sizes, columns.chunk_counts, strict=True):
        if count == 1:
            plains.append(size)
        else:
            plains += columns.plains[position : position + count]
            position += count
    return plains
