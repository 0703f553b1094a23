"""An entry: one path's record in a run, and its share in the digest of a seq."""

from __future__ import annotations

import enum
import struct

import msgspec
from blake3 import blake3

from synclib.core.names import sort_key
from synclib.errors import Corrupt

CHUNK_BYTES_MAX = 1 << 20
CHUNKS_PER_FILE_MAX = 1 << 20
TARGET_BYTES_MAX = 4095
EXTRA_NAME_BYTES_MAX = 0xFFFF  # what the digest can count
EXTRAS_MAX = 1024
EXTRA_BYTES_MAX = 1 << 20  # names and values of one entry together
HARDLINK, OWNER, XATTR = "hardlink", "owner", "xattr."  # of a file's group; of uid and gid; before an xattr's name
XATTRS = "xattrs"  # empty: the entry has all attributes that there were, so others are to be removed
HARDLINK_BYTES, OWNER_BYTES = 16, 8
XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX = 255, 64 << 10  # linux/limits.h
HASH_BYTES = 32
# What 64 bits of nanoseconds reach: 1677-09-21 to 2262-04-11.
TIME_NS_MIN, TIME_NS_MAX = -(1 << 63), (1 << 63) - 1
ULID_BYTES = 16
OFFSET_MAX = 1 << 40  # in a pack
ADDRESS_UNIT = 4096
ADDRESS_FIRST = 1  # unit 0 is no file's: an address of 0 is none
ADDRESS_MAX = 1 << 48


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


Extra = tuple[tuple[str, bytes], ...]  # (name, value), by name


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
    extra: Extra = ()  # hard-link group, owner, xattrs
    # So young when it was scanned that a later change may not show in its time: it is read again (core/delta.py). No
    # part of the content.
    is_racy: bool = False
    # Where a file with content begins in the dataset's address space (docs/format/address.md), in units of 4 KiB; 0
    # when it has none yet. No part of the content.
    address: int = 0

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.directory else self.name

    @property
    def key(self) -> bytes:
        return sort_key(self.directory, self.name)


def address_units(size: int) -> int:
    """How many units of the address space a file of ``size`` bytes takes."""
    return -(-size // ADDRESS_UNIT)


def group_of(extra: Extra) -> bytes:
    """The hard-link group that a file is of; empty when it is of none."""
    return next((value for name, value in extra if name == HARDLINK), b"")


def link_key(entry: Entry) -> bytes:
    """What the members of a hard-link group that can be one file have in common: the group, and all that a file has but
    its name; empty for a file of no group. Groups that two publishers named alike are told apart by it."""
    if not group_of(entry.extra):
        return b""
    return blake3(digest_input(msgspec.structs.replace(entry, directory=b"", name=b""))).digest(HARDLINK_BYTES)


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


def check_target(target: bytes) -> None:
    """Corrupt unless a symlink may have this target."""
    if not target or b"\0" in target or len(target) > TARGET_BYTES_MAX:
        raise Corrupt("a symlink has no possible target")


def check_extra(extra: Extra) -> None:
    """Corrupt for extras that no file system has: too many, too long, odd names, values of the wrong size."""
    seen: set[str] = set()
    size = 0
    for name, value in extra:
        encoded = name.encode()
        size += len(encoded) + len(value)
        is_possible = 0 < len(encoded) <= EXTRA_NAME_BYTES_MAX and "\0" not in name and name not in seen
        if name == HARDLINK:
            is_possible &= len(value) == HARDLINK_BYTES
        elif name == OWNER:
            is_possible &= len(value) == OWNER_BYTES
        elif name == XATTRS:
            is_possible &= not value
        elif name.startswith(XATTR):
            # xattr(7): a namespace, a dot, and a name that is not empty.
            namespace, dot, rest = name.removeprefix(XATTR).partition(".")
            is_possible &= bool(namespace and dot and rest) and len(encoded) - len(XATTR) <= XATTR_NAME_BYTES_MAX
            is_possible &= len(value) <= XATTR_VALUE_BYTES_MAX
        if not is_possible or len(seen) >= EXTRAS_MAX or size > EXTRA_BYTES_MAX:
            raise Corrupt("an extra of an entry is impossible")
        seen.add(name)
