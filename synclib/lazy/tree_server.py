"""A dataset at a seq as a FUSE tree of its own: where EROFS cannot be mounted, for one who is not root.

A node's number says where its entry stands in the chain, so a worker that takes over knows every node that the kernel
still holds, and none is ever forgotten or remembered. Nothing changes, so the kernel may keep all that it is told.
"""

from __future__ import annotations

import errno
import stat
import struct
import threading
from collections import OrderedDict

from synclib.core import fuse
from synclib.core.entry import ADDRESS_UNIT, OWNER, Entry, Kind
from synclib.core.names import NAME_BYTES_MAX
from synclib.lazy.blob import Blob
from synclib.lazy.chain import Chain, Place
from synclib.lazy.entry_extents import EntryExtents, extents_at
from synclib.lazy.fuse_server import Answer

_BLOCK_BITS, _INDEX_BITS = 28, 20
_LISTINGS_KEPT, _ENTRIES_KEPT = 8, 10_000
_FORMATS = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}
_TYPES = {Kind.FILE: 8, Kind.DIRECTORY: 4, Kind.SYMLINK: 10}  # DT_*
_ROOT = Entry(b"", b"", Kind.DIRECTORY, 0o755)


class TreeServer:
    """What a FuseServer serves. ``time_ns``: what directories show as their time, for a seq has none of them.
    ``owner``: uid and gid of all that is in it; None where each has its own."""

    def __init__(
        self,
        chain: Chain,
        extents: EntryExtents,
        blob: Blob,
        plain_bytes: int,
        time_ns: int,
        owner: tuple[int, int] | None = None,
    ) -> None:
        self._chain, self._extents, self._blob = chain, extents, blob
        self._plain_bytes, self._time_ns, self._owner = plain_bytes, time_ns, owner
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._listings: OrderedDict[int, list[tuple[int, Entry]]] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, request: fuse.Request, buffer: bytearray | bytes, length: int) -> Answer:
        unique, node = request.unique, request.node_id
        match request.opcode:
            case fuse.LOOKUP:
                return [self._lookup(unique, node, fuse.name_of(buffer, length))]
            case fuse.GETATTR:
                return [fuse.attr_answer(unique, node, self._attributes(self._entry(node)))]
            case fuse.READ:
                data = self._read(self._entry(node), *fuse.read_range(buffer))
                return [fuse.data_header(unique, len(data)), data]
            case fuse.READLINK:
                return [fuse.answer(unique, self._entry(node).target)]
            case fuse.READDIR | fuse.READDIRPLUS:
                is_plus = request.opcode == fuse.READDIRPLUS
                return [fuse.answer(unique, self._names(node, *fuse.read_range(buffer), is_plus=is_plus))]
            case fuse.STATFS:
                return [fuse.statfs_answer(unique, self._plain_bytes)]
            case _:
                # OPEN and OPENDIR too: then the kernel opens without asking, and keeps what it has read.
                return [fuse.error(unique, errno.ENOSYS)]

    def _entry(self, node: int) -> Entry:
        if node == fuse.ROOT_ID:
            return _ROOT
        with self._lock:
            if (kept := self._entries.get(node)) is not None:
                self._entries.move_to_end(node)
                return kept
        return self._keep(node, self._chain.at(_place_of(node)))

    def _keep(self, node: int, entry: Entry) -> Entry:
        with self._lock:
            self._entries[node] = entry
            while len(self._entries) > _ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return entry

    def _lookup(self, unique: int, parent: int, name: bytes) -> bytes:
        if len(name) > NAME_BYTES_MAX:
            return fuse.error(unique, errno.ENAMETOOLONG)
        directory = self._entry(parent).path
        found = self._chain.enter(directory + b"/" + name if directory else name)
        if found is None:
            # Node 0: there is none, and never will be.
            return fuse.entry_answer(unique, 0, fuse.Attributes(0, 0))
        node = _node_of(found[0])
        return fuse.entry_answer(unique, node, self._attributes(self._keep(node, found[1])))

    def _attributes(self, entry: Entry) -> fuse.Attributes:
        kind = Kind(entry.kind)
        uid, gid = self._owner or next(
            (struct.unpack("<II", value) for name, value in entry.extra if name == OWNER), (0, 0)
        )
        size = len(entry.target) if kind == Kind.SYMLINK else entry.size
        time_ns = self._time_ns if kind == Kind.DIRECTORY else entry.mtime_ns
        return fuse.Attributes(size, _FORMATS[kind] | entry.mode, time_ns, uid, gid, 2 if kind == Kind.DIRECTORY else 1)

    def _read(self, entry: Entry, offset: int, length: int) -> bytes:
        length = max(min(length, entry.size - offset), 0)
        if not length:
            return b""
        self._extents.know(entry)  # for its neighbours
        start = entry.address * ADDRESS_UNIT + offset
        return self._blob.read(start, length, extents_at(entry, offset, length))

    def _names(self, node: int, offset: int, room: int, *, is_plus: bool) -> bytes:
        """Names from a place in a directory on, as many as there is room for; ``.`` and ``..`` come first, and with
        READDIRPLUS have no node."""
        listing = self._listing(node)
        found = bytearray()
        for number in range(offset, len(listing) + 2):
            if number < 2:
                head = fuse.entry_out(0, fuse.Attributes(0, 0)) if is_plus else b""
                row = fuse.dirent(node, number + 1, _TYPES[Kind.DIRECTORY], (b".", b"..")[number], head)
            else:
                child, entry = listing[number - 2]
                head = fuse.entry_out(child, self._attributes(entry)) if is_plus else b""
                row = fuse.dirent(child, number + 1, _TYPES[Kind(entry.kind)], entry.name, head)
            if len(found) + len(row) > room:
                break
            found += row
        return bytes(found)

    def _listing(self, node: int) -> list[tuple[int, Entry]]:
        with self._lock:
            if (kept := self._listings.get(node)) is not None:
                self._listings.move_to_end(node)
                return kept
        found = []
        for entry in self._chain.listdir(self._entry(node).path, with_hashes=False):
            located = self._chain.locate(entry.key)
            assert located is not None
            found.append((_node_of(located[0]), entry))
        with self._lock:
            self._listings[node] = found
            while len(self._listings) > _LISTINGS_KEPT:
                self._listings.popitem(last=False)
        return found


def _node_of(place: Place) -> int:
    run, block, index = place
    return (run + 1) << (_BLOCK_BITS + _INDEX_BITS) | block << _INDEX_BITS | index


def _place_of(node: int) -> Place:
    block = node >> _INDEX_BITS & (1 << _BLOCK_BITS) - 1
    return (node >> (_BLOCK_BITS + _INDEX_BITS)) - 1, block, node & (1 << _INDEX_BITS) - 1
