"""The metadata of a seq as an EROFS image whose files lie in one further device: the dataset's address space.

Layout of the kernel's fs/erofs/erofs_fs.h (Linux 6.12 and later), 4 KiB blocks, uncompressed:

    block 0    superblock at 1024, the device's slot at 1152
    block 1    the root's inode
    then       a region for each directory, in the order of entries, which is that of a walk from the top: its list of
               names, then the inodes of what is in it, so that a lookup touches one place a level

A file's data is FLAT_PLAIN: its first block is where the device is mapped (a constant, so that an inode does not change
when other files come and go) plus its address. The same entries give the same bytes, whoever builds them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from synclib.core.entry import OWNER, XATTR, Entry, Kind, link_key
from synclib.errors import Corrupt, Unsupported

BLOCK_BYTES = 4096
# Where the device lies in the image's numbers of blocks: 1 TiB of metadata below, 15 TiB of files above.
DEVICE_BLOCK = 1 << 28
DEVICE_BLOCKS_MAX = (1 << 32) - DEVICE_BLOCK
IMAGE_BYTES_MAX = DEVICE_BLOCK * BLOCK_BYTES
INODE_BYTES = 64
# Regions longer than this are noted: whoever looks for a name in one reads several places of it.
WIDE_BYTES = 64 << 10
DIRENT_BYTES = 12  # of a dirent, without its name
ROOT_NID = BLOCK_BYTES // 32
_MAGIC, _DEVICE_TABLE = 0xE0F5E1E2, 0x8
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_SUPERBLOCK_AT, _DEVICE_AT = 1024, 1152
_DEVICE_SLOT_BYTES = 128
_DEVICE = struct.Struct("<64sII56x")
# erofs_inode_extended: format, xattr_icount, mode, (reserved), size, union, ino, uid, gid, mtime, mtime_nsec, nlink.
INODE = struct.Struct("<HHHHQIIIIqII16x")
DIRENT = struct.Struct("<QHBB")
EXTENDED_PLAIN, EXTENDED_INLINE = 1, 1 | 2 << 1
TYPES = {Kind.FILE: 1, Kind.DIRECTORY: 2, Kind.SYMLINK: 7}  # as in dirents: DT_* of the file system
FORMATS = {Kind.FILE: 0o100000, Kind.DIRECTORY: 0o040000, Kind.SYMLINK: 0o120000}
DIRECTORY_TYPE = 2
_FILE_TYPE, _FILE_FORMAT = 1, 0o100000
_NLINK_MAX = (1 << 32) - 1
_ROOT_MODE = 0o755

Write = tuple[int, bytes]  # bytes at an offset of the image


@dataclass
class Left:
    """What the image cannot hold, counted, with the first few paths: never dropped without a word."""

    xattrs: int = 0
    examples: list[bytes] = field(default_factory=list)

    def note(self, path: bytes) -> None:
        self.xattrs += 1
        if len(self.examples) < 10:
            self.examples.append(path)


@dataclass
class _Pending:
    """A directory whose inode is written when its region is: where that goes, and what the inode will say."""

    nid: int
    parent_nid: int
    mode: int
    owner: tuple[int, int]


@dataclass
class _Group:
    """A hard-link group: its one inode, and how many names it has so far."""

    nid: int
    inode: bytes
    count: int = 1


class ImageBuilder:
    """Makes the writes of one image. ``address_end``: of the manifest; ``identity``: 16 bytes that name the content."""

    def __init__(self, address_end: int, identity: bytes) -> None:
        if address_end > DEVICE_BLOCKS_MAX:
            raise Unsupported(
                f"the address space of the dataset has grown to {address_end * BLOCK_BYTES >> 40} TiB, EROFS reaches 15"
            )
        self._address_end, self._identity = address_end, identity
        self.left = Left()
        self.wide: list[tuple[int, int]] = []  # (first byte, end) of each region longer than WIDE_BYTES
        self.block_count = 2
        self.inode_count = 0
        self._pending: dict[bytes, _Pending] = {b"": _Pending(ROOT_NID, ROOT_NID, _ROOT_MODE, (0, 0))}
        self._groups: dict[bytes, _Group] = {}

    def build(self, entries: Iterable[Entry]) -> Iterator[Write]:
        """The image's bytes, in pieces in no order; what is not written is zero. ``entries``: of the whole seq, sorted,
        without tombstones."""
        for directory, found in groupby(entries, key=_directory):
            yield from self._before(directory)
            yield from self._region(directory, list(found))
        # Whatever is left has nothing in it.
        for directory in list(self._pending):
            yield from self._region(directory, [])
        for group in self._groups.values():
            if group.count > 1:
                yield group.nid * 32, _with_nlink(group.inode, group.count)
        yield 0, first_block(self.block_count, self.inode_count, self._address_end, self._identity)

    @property
    def image_bytes(self) -> int:
        return self.block_count * BLOCK_BYTES

    def _before(self, directory: bytes) -> Iterator[Write]:
        """Check that a directory was met; the root comes first even where nothing lies right in it."""
        if directory not in self._pending:
            raise Corrupt(f"entries lie in {directory!r}, which is no directory of the seq")
        if directory and b"" in self._pending:
            yield from self._region(b"", [])

    def _region(self, directory: bytes, found: list[Entry]) -> Iterator[Write]:
        """A directory's region, and its inode."""
        own = self._pending.pop(directory)
        start = self.block_count
        names_bytes, layout = names_layout([b".", b"..", *(entry.name for entry in found)])
        place = Place(start * BLOCK_BYTES + names_bytes)
        nids: dict[bytes, tuple[int, int]] = {
            b".": (own.nid, DIRECTORY_TYPE),
            b"..": (own.parent_nid, DIRECTORY_TYPE),
        }
        inodes = bytearray()
        for entry in found:
            nids[entry.name] = self._child(entry, own, place, inodes)
        region = dirents(layout, nids)
        region += bytes(place.first - start * BLOCK_BYTES - len(region))
        region += inodes
        self.block_count = start + -(-len(region) // BLOCK_BYTES)
        if self.block_count > DEVICE_BLOCK:
            raise Unsupported("the dataset has too many names for one image", hint="divide it into several datasets")
        if len(region) > WIDE_BYTES:
            self.wide.append((start * BLOCK_BYTES, self.block_count * BLOCK_BYTES))
        yield start * BLOCK_BYTES, bytes(region)
        mtime_ns = max((entry.mtime_ns for entry in found), default=0)
        links = 2 + sum(entry.kind == Kind.DIRECTORY for entry in found)
        self.inode_count += 1
        yield (
            own.nid * 32,
            encode_inode(EXTENDED_PLAIN, 0o040000 | own.mode, names_bytes, start, own.nid, own.owner, mtime_ns, links),
        )

    def _child(self, entry: Entry, parent: _Pending, place: Place, inodes: bytearray) -> tuple[int, int]:
        """(nid, type) of what is in a directory; its inode, if it has one of its own here, is added."""
        if entry.kind == Kind.FILE and not entry.extra:  # nearly all are such: told apart first, for speed
            self.inode_count += 1
            nid = place.take(INODE_BYTES, inodes)
            inodes += encode_file(entry, nid, (0, 0))
            return nid, _FILE_TYPE
        owner = self._owner(entry)
        kind = Kind(entry.kind)
        group = link_key(entry) if kind == Kind.FILE else b""
        if group and group in self._groups:
            self._groups[group].count += 1
            return self._groups[group].nid, TYPES[kind]
        if kind == Kind.DIRECTORY:
            nid = place.take(INODE_BYTES, inodes)
            self._pending[entry.path] = _Pending(nid, parent.nid, entry.mode, owner)
            inodes += bytes(INODE_BYTES)
            return nid, DIRECTORY_TYPE
        self.inode_count += 1
        mode = FORMATS[kind] | entry.mode
        if kind == Kind.SYMLINK:
            return add_link(entry, mode, owner, place, inodes), TYPES[kind]
        nid = place.take(INODE_BYTES, inodes)
        inode = encode_file(entry, nid, owner)
        if group:
            self._groups[group] = _Group(nid, inode)
        inodes += inode
        return nid, TYPES[kind]

    def _owner(self, entry: Entry) -> tuple[int, int]:
        """uid and gid; attributes are noted as left out."""
        if has_attributes(entry):
            self.left.note(entry.path)
        return owner_of(entry)


def first_block(block_count: int, inode_count: int, address_end: int, identity: bytes) -> bytes:
    """The superblock and the device's slot. ``identity``: 16 bytes."""
    block = bytearray(BLOCK_BYTES)
    _SUPERBLOCK.pack_into(
        block,
        _SUPERBLOCK_AT,
        _MAGIC,
        0,  # no checksum: the image's digest is the manifest's or ours
        0,
        12,  # log2 of the block's length
        0,
        ROOT_NID,
        inode_count,
        0,
        0,
        block_count,
        0,  # inode numbers count from block 0
        0,
        identity,
        b"boxlink",
        _DEVICE_TABLE,
        0,
        1,  # further devices
        _DEVICE_AT // _DEVICE_SLOT_BYTES,
        0,
        0,
        0,
        0,
        0,
    )
    _DEVICE.pack_into(block, _DEVICE_AT, b"blob", address_end, DEVICE_BLOCK)
    return bytes(block)


class Place:
    """Where the next inode goes: in slots of 32 bytes, none of which may begin in one block and end in another."""

    def __init__(self, names_end: int) -> None:
        # The kernel takes a last name to end at a NUL, or with its block.
        is_full = names_end % BLOCK_BYTES == 0
        self.first = self._next = -(-(names_end + (not is_full)) // INODE_BYTES) * INODE_BYTES

    def take(self, size: int, inodes: bytearray, alignment: int = 32) -> int:
        """The number (nid) of the place for ``size`` bytes; ``inodes`` is filled up to there."""
        at = -(-self._next // alignment) * alignment
        if at % BLOCK_BYTES + size > BLOCK_BYTES:
            at = -(-at // BLOCK_BYTES) * BLOCK_BYTES
        gap = at - self.first - len(inodes)
        if gap:
            inodes += bytes(gap)
        self._next = at + size
        return at // 32


def owner_of(entry: Entry) -> tuple[int, int]:
    """uid and gid."""
    for name, value in entry.extra:
        if name == OWNER:
            return struct.unpack("<II", value)
    return (0, 0)


def has_attributes(entry: Entry) -> bool:
    """Whether an entry has extended attributes, which an image does not hold."""
    return any(name.startswith(XATTR) for name, _ in entry.extra)


def encode_file(entry: Entry, nid: int, owner: tuple[int, int]) -> bytes:
    """The inode of a file with one name."""
    if entry.size and not entry.address:
        raise Corrupt(f"{entry.path!r} has no address")
    first = DEVICE_BLOCK + entry.address if entry.size else 0
    return encode_inode(EXTENDED_PLAIN, _FILE_FORMAT | entry.mode, entry.size, first, nid, owner, entry.mtime_ns, 1)


def add_link(entry: Entry, mode: int, owner: tuple[int, int], place: Place, inodes: bytearray) -> int:
    """A symlink: its target stands right after its inode, or in a block of its own where both do not fit in one."""
    size = len(entry.target)
    if INODE_BYTES + size > BLOCK_BYTES:
        nid = place.take(INODE_BYTES, inodes)
        at = len(inodes)
        inodes += bytes(INODE_BYTES)
        block = place.take(BLOCK_BYTES, inodes, BLOCK_BYTES) * 32 // BLOCK_BYTES
        inodes += entry.target.ljust(BLOCK_BYTES, b"\0")
        inodes[at : at + INODE_BYTES] = encode_inode(EXTENDED_PLAIN, mode, size, block, nid, owner, entry.mtime_ns, 1)
        return nid
    nid = place.take(INODE_BYTES + size, inodes)
    inodes += encode_inode(EXTENDED_INLINE, mode, size, 0, nid, owner, entry.mtime_ns, 1) + entry.target
    return nid


def _directory(entry: Entry) -> bytes:
    return entry.directory


def encode_inode(
    layout: int, mode: int, size: int, block: int, nid: int, owner: tuple[int, int], mtime_ns: int, nlink: int
) -> bytes:
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    number = nid & 0xFFFFFFFF  # what stat shows on 32-bit programs; the kernel's own number is the nid
    uid, gid = owner
    return INODE.pack(layout, 0, mode, 0, size, block, number, uid, gid, seconds, nanoseconds, min(nlink, _NLINK_MAX))


def _with_nlink(inode: bytes, nlink: int) -> bytes:
    fields = list(INODE.unpack(inode))
    fields[-1] = min(nlink, _NLINK_MAX)
    return INODE.pack(*fields)


def names_layout(names: list[bytes]) -> tuple[int, list[list[bytes]]]:
    """(length of the list, its names block by block), sorted: dirents first in each block, then the names."""
    blocks: list[list[bytes]] = []
    current: list[bytes] = []
    used = 0
    for name in sorted(names):
        need = DIRENT_BYTES + len(name)
        if used + need > BLOCK_BYTES:
            blocks.append(current)
            current, used = [], 0
        current.append(name)
        used += need
    blocks.append(current)
    return (len(blocks) - 1) * BLOCK_BYTES + used, blocks


def dirents(blocks: list[list[bytes]], nids: dict[bytes, tuple[int, int]]) -> bytearray:
    listing = bytearray()
    for names in blocks:
        listing += bytes(-len(listing) % BLOCK_BYTES)
        at = DIRENT_BYTES * len(names)
        for name in names:
            nid, kind = nids[name]
            listing += DIRENT.pack(nid, at, kind, 0)
            at += len(name)
        listing += b"".join(names)
    return listing
