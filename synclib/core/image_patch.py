"""Changes to an image: what a few diffs say of a seq whose image there is, without making all of it anew.

Inodes stay where they are. That of a file that changes is written in its place; a directory in which names come or go
gets a new list of names behind the image's end, with the inodes that are new, and its own inode says where. So the cost
follows the directories that changed. The same image and the same changes give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby

from synclib.core.entry import Entry, Kind, link_key
from synclib.core.erofs import (
    BLOCK_BYTES,
    DEVICE_BLOCK,
    DIRECTORY_TYPE,
    DIRENT,
    DIRENT_BYTES,
    EXTENDED_INLINE,
    EXTENDED_PLAIN,
    FORMATS,
    INODE,
    INODE_BYTES,
    ROOT_NID,
    TYPES,
    Place,
    add_link,
    dirents,
    encode_file,
    encode_inode,
    first_block,
    has_attributes,
    names_layout,
    owner_of,
)
from synclib.errors import Corrupt, Unsupported

Read = Callable[[int, int], bytes]  # (position, length) of the image that is changed
_TYPE_MASK = 0o170000


class NotPatchableError(Exception):
    """Hard links come or go: their inode is shared by names that a change need not mention."""


@dataclass(frozen=True)
class _Inode:
    nid: int
    mode: int
    size: int
    block: int
    owner: tuple[int, int]
    mtime_ns: int
    nlink: int
    is_inline: bool = False

    def encode(self) -> bytes:
        layout = EXTENDED_INLINE if self.is_inline else EXTENDED_PLAIN
        return encode_inode(layout, self.mode, self.size, self.block, self.nid, self.owner, self.mtime_ns, self.nlink)


@dataclass
class _Directory:
    """One that is being changed. ``names``: (nid, type) by name, without ``.`` and ``..``; ``removed_ns``: the times of
    what has gone or got another."""

    inode: _Inode
    parent_nid: int
    names: dict[bytes, tuple[int, int]]
    was_empty: bool
    fresh: list[Entry] = field(default_factory=list)
    removed_ns: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    is_listed_anew: bool = False


class ImagePatch:
    """``blocks``: by number, what differs from the image or is behind its end; the rest of it stays."""

    def __init__(self, read: Read, image_bytes: int) -> None:
        self._read_image, self._image_bytes = read, image_bytes
        self.blocks: dict[int, bytearray] = {}
        self.block_count = image_bytes // BLOCK_BYTES
        self.left_out = 0
        self._new: dict[bytes, tuple[_Inode, int]] = {}  # directories without a list yet: inode, nid of the parent
        self._nids: dict[bytes, int | None] = {b"": ROOT_NID}  # of directories, by path

    @property
    def image_bytes(self) -> int:
        return self.block_count * BLOCK_BYTES

    def apply(self, changes: Iterable[Entry]) -> None:
        """``changes``: the newest record of each path that the diffs name, sorted, with tombstones. NotPatchableError
        leaves the patch useless; Corrupt where the image is not one that was made here."""
        try:
            for path, found in groupby(changes, key=lambda entry: entry.directory):
                self._change(path, list(found))
            for path in list(self._new):
                self._change(path, [])
        except (struct.error, IndexError) as error:
            raise Corrupt(f"an image's structure is broken: {error}") from error

    def seal(self, inode_count: int, address_end: int, identity: bytes) -> None:
        """The superblock. The numbers are of the seq."""
        self.blocks[0] = bytearray(first_block(self.block_count, inode_count, address_end, identity))

    def read(self, position: int, length: int) -> bytes:
        """The bytes of the changed image."""
        first, last = position // BLOCK_BYTES, (position + length - 1) // BLOCK_BYTES
        if not any(number in self.blocks for number in range(first, last + 1)):
            return self._read_image(position, length)
        start = position - first * BLOCK_BYTES
        return b"".join(self._block(number) for number in range(first, last + 1))[start : start + length]

    def _block(self, number: int) -> bytes:
        if number in self.blocks:
            return bytes(self.blocks[number])
        if number * BLOCK_BYTES >= self._image_bytes:
            raise Corrupt("an image refers to what is behind its end")
        return self._read_image(number * BLOCK_BYTES, BLOCK_BYTES)

    def _write(self, position: int, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            number, at = divmod(position, BLOCK_BYTES)
            if number not in self.blocks:
                is_new = number * BLOCK_BYTES >= self._image_bytes
                self.blocks[number] = bytearray(BLOCK_BYTES if is_new else self._block(number))
            taken = min(BLOCK_BYTES - at, len(view))
            self.blocks[number][at : at + taken] = view[:taken]
            position, view = position + taken, view[taken:]

    def _inode(self, nid: int) -> _Inode:
        raw = self.read(nid * 32, INODE_BYTES)
        layout, _, mode, _, size, block, _, uid, gid, seconds, nanoseconds, nlink = INODE.unpack(raw)
        if layout not in (EXTENDED_PLAIN, EXTENDED_INLINE):
            raise Corrupt("an image has an inode that was not made here")
        mtime_ns = seconds * 10**9 + nanoseconds
        return _Inode(nid, mode, size, block, (uid, gid), mtime_ns, nlink, layout == EXTENDED_INLINE)

    def _listing(self, inode: _Inode) -> dict[bytes, tuple[int, int]]:
        """(nid, type) of every name in a directory."""
        if inode.mode & _TYPE_MASK != FORMATS[Kind.DIRECTORY] or inode.size > self.image_bytes:
            raise Corrupt("an image has a directory that is none")
        data = self.read(inode.block * BLOCK_BYTES, inode.size) if inode.size else b""
        names: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(data), BLOCK_BYTES):
            block = data[start : start + BLOCK_BYTES]
            rows = DIRENT.unpack_from(block)[1] // DIRENT_BYTES
            found = list(DIRENT.iter_unpack(block[: rows * DIRENT_BYTES]))
            ends = [row[1] for row in found[1:]] + [len(block)]
            for (nid, at, kind, _), end in zip(found, ends, strict=True):
                names[block[at:end].rstrip(b"\0")] = (nid, kind)
        return names

    def look(self, path: bytes) -> None:
        """Read what a change in a directory will read, in an image that is as it was."""
        nid = self._find(path)
        if nid is not None:
            self._listing(self._inode(nid))

    def _find(self, path: bytes) -> int | None:
        """The nid of a directory; None where there is none, or something else."""
        if path not in self._nids:
            directory, _, name = path.rpartition(b"/")
            parent = self._find(directory)
            found = None if parent is None else self._listing(self._inode(parent)).get(name)
            self._nids[path] = found[0] if found and found[1] == DIRECTORY_TYPE else None
        return self._nids[path]

    def _change(self, path: bytes, found: list[Entry]) -> None:
        directory = self._open(path)
        if directory is None:
            if any(entry.kind != Kind.TOMBSTONE for entry in found):
                raise Corrupt(f"entries lie in {path!r}, which is no directory of the image")
            return
        for entry in found:
            if entry.kind == Kind.TOMBSTONE:
                self._remove(directory, entry.name)
            else:
                self._put(directory, entry)
        if directory.is_listed_anew:
            self._list_anew(directory)
        mtime_ns = self._newest(directory)
        links = 2 + sum(kind == DIRECTORY_TYPE for _, kind in directory.names.values())
        own = replace(directory.inode, mtime_ns=mtime_ns, nlink=links)
        self._write(own.nid * 32, own.encode())

    def _open(self, path: bytes) -> _Directory | None:
        if path in self._new:
            inode, parent_nid = self._new.pop(path)
            return _Directory(inode, parent_nid, {}, True, is_listed_anew=True)
        nid = self._find(path)
        if nid is None:
            return None
        inode = self._inode(nid)
        names = self._listing(inode)
        parent_nid = names.pop(b"..", (nid, 0))[0]
        names.pop(b".", None)
        return _Directory(inode, parent_nid, names, not names)

    def _remove(self, directory: _Directory, name: bytes) -> None:
        old = directory.names.pop(name, None)
        if old is not None:
            self._note_removed(directory, old)
            directory.is_listed_anew = True

    def _note_removed(self, directory: _Directory, old: tuple[int, int]) -> None:
        nid, kind = old
        if kind == DIRECTORY_TYPE:
            directory.removed_ns.append(0)
            return
        inode = self._inode(nid)
        if inode.nlink != 1:
            raise NotPatchableError
        directory.removed_ns.append(inode.mtime_ns)

    def _put(self, directory: _Directory, entry: Entry) -> None:
        kind = Kind(entry.kind)
        if kind == Kind.FILE and link_key(entry):
            raise NotPatchableError
        self.left_out += has_attributes(entry)
        directory.times_ns.append(entry.mtime_ns)
        old = directory.names.get(entry.name)
        if old is not None and old[1] == TYPES[kind] and kind != Kind.SYMLINK:
            if kind == Kind.DIRECTORY:
                inode = replace(self._inode(old[0]), mode=FORMATS[kind] | entry.mode, owner=owner_of(entry))
                self._write(old[0] * 32, inode.encode())
            else:
                self._note_removed(directory, old)
                self._write(old[0] * 32, encode_file(entry, old[0], owner_of(entry)))
            return
        if old is not None:
            self._note_removed(directory, old)
        directory.fresh.append(entry)
        directory.names[entry.name] = (0, TYPES[kind])
        directory.is_listed_anew = True

    def _list_anew(self, directory: _Directory) -> None:
        """The list of names behind the image's end, then the inodes that are new."""
        start = self.block_count
        names_bytes, layout = names_layout([b".", b"..", *directory.names])
        place = Place(start * BLOCK_BYTES + names_bytes)
        inodes = bytearray()
        for entry in directory.fresh:
            directory.names[entry.name] = (self._add(directory, entry, place, inodes), TYPES[Kind(entry.kind)])
        own = {
            b".": (directory.inode.nid, DIRECTORY_TYPE),
            b"..": (directory.parent_nid, DIRECTORY_TYPE),
        }
        region = dirents(layout, directory.names | own)
        region += bytes(place.first - start * BLOCK_BYTES - len(region))
        region += inodes
        self.block_count = start + -(-len(region) // BLOCK_BYTES)
        if self.block_count > DEVICE_BLOCK:
            raise Unsupported("the dataset has too many names for one image", hint="divide it into several datasets")
        self._write(start * BLOCK_BYTES, region.ljust((self.block_count - start) * BLOCK_BYTES, b"\0"))
        directory.inode = replace(directory.inode, size=names_bytes, block=start)

    def _add(self, directory: _Directory, entry: Entry, place: Place, inodes: bytearray) -> int:
        """The nid of a new inode."""
        kind, owner = Kind(entry.kind), owner_of(entry)
        if kind == Kind.SYMLINK:
            return add_link(entry, FORMATS[kind] | entry.mode, owner, place, inodes)
        nid = place.take(INODE_BYTES, inodes)
        if kind == Kind.DIRECTORY:
            inode = _Inode(nid, FORMATS[kind] | entry.mode, 0, 0, owner, 0, 2)
            self._new[entry.path] = (inode, directory.inode.nid)
            self._nids[entry.path] = nid
            inodes += bytes(INODE_BYTES)
        else:
            inodes += encode_file(entry, nid, owner)
        return nid

    def _newest(self, directory: _Directory) -> int:
        """The time of a directory: that of the newest file or symlink right in it, else 0."""
        before = [] if directory.was_empty else [directory.inode.mtime_ns]
        if before and before[0] in directory.removed_ns:
            return max((self._mtime_ns(*found) for found in directory.names.values()), default=0)
        return max([*before, *directory.times_ns], default=0)

    def _mtime_ns(self, nid: int, kind: int) -> int:
        return 0 if kind == DIRECTORY_TYPE else self._inode(nid).mtime_ns
