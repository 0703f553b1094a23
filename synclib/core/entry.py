"""An entry: one path's record in a run, and its share in the digest of a seq."""

from __future__ import annotations

import enum
import struct

import msgspec
from blake3 import blake3

from synclib.core.names import check_component, is_reserved, sort_key
from synclib.errors import Corrupt

CHUNK_BYTES_MAX = 1 << 20
CHUNKS_PER_FILE_MAX = 1 << 20
EXTRA_NAME_BYTES_MAX = 0xFFFF  # what the digest can count
HASH_BYTES = 32
# What 64 bits of nanoseconds reach: 1677-09-21 to 2262-04-11.
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1
ULID_BYTES = 16


class Kind(enum.IntEnum):
    """Stored on disk: never renumber."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    TOMBSTONE = 4


class Codec(enum.IntEnum):
    """How a chunk's bytes are stored. Stored on disk: never renumber."""

    RAW = 0
    ZSTD = 1


class ChunkRef(msgspec.Struct, frozen=True, gc=False):
    """Where a chunk's bytes are and what they must be."""

    hash: bytes  # BLAKE3-256 of the plain bytes
    pack: bytes  # ULID of the pack that holds it, 16 bytes
    offset: int  # of the stored bytes in the pack object
    stored_bytes: int
    plain_bytes: int
    codec: int  # a Codec


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One path at a seq. ``directory`` is relative, ``b""`` for the root; both names are raw bytes."""

    directory: bytes
    name: bytes
    kind: int  # a Kind
    mode: int = 0  # permission bits, with setuid, setgid and sticky
    mtime_ns: int = 0  # 0 for directories: their times follow from what is in them
    size: int = 0  # bytes of a file
    chunks: tuple[ChunkRef, ...] = ()  # of a file, in order
    target: bytes = b""  # of a symlink
    extra: tuple[tuple[str, bytes], ...] = ()  # room for hard-link groups, owners and xattrs

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.directory else self.name

    @property
    def key(self) -> bytes:
        return sort_key(self.directory, self.name)


def is_same_content(first: Entry, second: Entry) -> bool:
    """Whether two entries of one path mean the same, wherever their bytes are stored."""
    return (
        first.kind == second.kind
        and first.mode == second.mode
        and first.mtime_ns == second.mtime_ns
        and first.size == second.size
        and first.target == second.target
        and first.extra == second.extra
        and content_id(first) == content_id(second)
    )


def content_id(entry: Entry) -> bytes:
    """32 bytes that name a file's content: the chunk's hash, or a BLAKE3 over the hashes of several.

    Chunk boundaries follow from the bytes alone (docs/format/chunk.md), so equal content has equal ids.
    """
    if len(entry.chunks) == 1:
        return entry.chunks[0].hash
    joined = b"".join(chunk.hash for chunk in entry.chunks)
    return blake3(joined, derive_key_context="boxlink 2026-11 content of several chunks").digest()


_FIELDS = struct.Struct("<BIqQHHH")


def digest_input(entry: Entry) -> bytes:
    """The bytes an entry gives to the digest of its seq: all that it says, but not where bytes are stored."""
    content = content_id(entry) if entry.kind == Kind.FILE else entry.target
    parts = [
        _FIELDS.pack(
            entry.kind,
            entry.mode,
            entry.mtime_ns,
            entry.size,
            len(entry.directory),
            len(entry.name),
            len(content),
        ),
        entry.directory,
        entry.name,
        content,
    ]
    for name, value in entry.extra:
        parts.append(struct.pack("<HI", len(name.encode()), len(value)) + name.encode() + value)
    return b"".join(parts)


def check_entry(entry: Entry) -> Entry:
    """``entry`` if a node may act on it (I9); Corrupt otherwise. For all that comes from a store.

    Its directory is checked by the caller, once for all entries in it.
    """
    check_component(entry.name)
    if is_reserved(entry.directory, entry.name):
        raise Corrupt(f"an entry would overwrite boxlink's own {entry.name!r}", path=repr(entry.path))
    if not 0 <= entry.mode <= 0o7777:
        raise Corrupt(f"an entry has mode {entry.mode:#o}", path=repr(entry.path))
    if not TIME_NS_MIN <= entry.mtime_ns <= TIME_NS_MAX:
        raise Corrupt("an entry's time is out of range", path=repr(entry.path))
    if any(len(name.encode()) > EXTRA_NAME_BYTES_MAX for name, _ in entry.extra):
        raise Corrupt("an extra's name is too long", path=repr(entry.path))
    if entry.kind == Kind.FILE:
        size = 0
        for chunk in entry.chunks:
            check_chunk(chunk, entry)
            size += chunk.plain_bytes
        if entry.size != size:
            raise Corrupt("a file's size is not the sum of its chunks", path=repr(entry.path))
    elif entry.chunks or entry.size:
        raise Corrupt("an entry that is no file has content", path=repr(entry.path))
    elif entry.kind == Kind.SYMLINK and (not entry.target or b"\0" in entry.target or len(entry.target) > 4095):
        raise Corrupt("a symlink has no possible target", path=repr(entry.path))
    return entry


def check_chunk(chunk: ChunkRef, entry: Entry) -> None:
    is_raw = chunk.codec == Codec.RAW
    if (
        not 0 < chunk.plain_bytes <= CHUNK_BYTES_MAX
        or not 0 < chunk.stored_bytes <= chunk.plain_bytes
        or (is_raw and chunk.stored_bytes != chunk.plain_bytes)
        or not (is_raw or chunk.codec == Codec.ZSTD)
        or not 0 <= chunk.offset < 1 << 40
    ):
        raise Corrupt("a chunk's place is impossible", path=repr(entry.path))
