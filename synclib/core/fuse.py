"""The kernel's FUSE protocol as bytes (Linux include/uapi/linux/fuse.h, 7.31 and later): what a server that only reads
needs. Nothing here opens anything."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY = 26, 27, 28, 29, 34, 36, 38
BATCH_FORGET, READDIRPLUS = 42, 44
ROOT_ID = 1
# Requests that are never answered.
SILENT = frozenset({FORGET, BATCH_FORGET, INTERRUPT})

_ASYNC_READ, _PARALLEL_DIROPS, _MAX_PAGES, _INIT_EXT = 1, 1 << 18, 1 << 22, 1 << 30
_READDIRPLUS, _READDIRPLUS_AUTO, _CACHE_SYMLINKS = 1 << 13, 1 << 14, 1 << 23
_HAS_RESEND, _REQUEST_TIMEOUT = 1 << (39 - 32), 1 << (42 - 32)  # in flags2
_OPEN_KEEP_CACHE = 2
_NOTIFY_RESEND = 7
_RESENT = 1 << 63

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_READ = struct.Struct("<QQI")
_OPENED = struct.Struct("<QIi")
_INIT_IN = struct.Struct("<5I")
_INIT_OUT = struct.Struct("<4I2H2I2H2IH22x")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_GETATTR = struct.Struct("<QII")
_STATFS = struct.Struct("<5Q3I28x")
_DIRENT = struct.Struct("<QQII")

HEADER_BYTES = _IN.size
OUT_BYTES = _OUT.size
READ_BYTES_MAX = 1 << 20
# No request of a server that only reads is longer; the kernel wants at least this much room.
REQUEST_BYTES_MAX = 16 << 10
_WRITE_BYTES_MAX = 4096
# How many reads ahead of anyone's need the kernel may have in flight.
_BACKGROUND_MAX = 512
_ATTR_VALID_S = 1 << 30  # nothing here ever changes
PROTOCOL_MAJOR, _PROTOCOL_MINOR_MAX, PROTOCOL_MINOR_MIN = 7, 45, 31


@dataclass(frozen=True, slots=True)
class Request:
    """One request's header. ``unique`` names it in the answer."""

    opcode: int
    unique: int
    node_id: int

    @property
    def is_resent(self) -> bool:
        """Whether it was taken before, and asked for again."""
        return bool(self.unique & _RESENT)


def parse_request(buffer: bytes | bytearray | memoryview, length: int) -> Request:
    """The header of a request of ``length`` bytes; ValueError for what the kernel does not send."""
    if length < HEADER_BYTES:
        raise ValueError("a FUSE request is too short")
    stated, opcode, unique, node_id, *_ = _IN.unpack_from(buffer)
    if stated != length:
        raise ValueError("a FUSE request has not the length that it says")
    return Request(opcode, unique, node_id)


def read_range(buffer: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(offset, length) of a READ."""
    _, offset, size = _READ.unpack_from(buffer, HEADER_BYTES)
    return offset, min(size, READ_BYTES_MAX)


def name_of(buffer: bytes | bytearray | memoryview, length: int) -> bytes:
    """The name that a LOOKUP asks for."""
    return bytes(buffer[HEADER_BYTES : length - 1])


def error(unique: int, number: int) -> bytes:
    return _OUT.pack(OUT_BYTES, -number, unique)


def answer(unique: int, body: bytes = b"") -> bytes:
    return _OUT.pack(OUT_BYTES + len(body), 0, unique) + body


def data_header(unique: int, length: int) -> bytes:
    """What precedes ``length`` bytes that a READ is answered with."""
    return _OUT.pack(OUT_BYTES + length, 0, unique)


def init_answer(buffer: bytes | bytearray | memoryview, unique: int, timeout_s: int) -> bytes:
    """The answer to INIT: large reads, many at once; the kernel itself gives up a request after ``timeout_s``, where it
    can (Linux 6.15). EPROTO for a kernel that is too old."""
    major, minor, readahead, flags, flags2 = _INIT_IN.unpack_from(buffer, HEADER_BYTES)
    if major != PROTOCOL_MAJOR or minor < PROTOCOL_MINOR_MIN:
        return error(unique, errno.EPROTO)
    wanted = flags & (
        _ASYNC_READ | _PARALLEL_DIROPS | _MAX_PAGES | _INIT_EXT | _READDIRPLUS | _READDIRPLUS_AUTO | _CACHE_SYMLINKS
    )
    wanted2 = (flags2 & (_HAS_RESEND | _REQUEST_TIMEOUT)) if flags & _INIT_EXT else 0
    body = _INIT_OUT.pack(
        PROTOCOL_MAJOR,
        min(minor, _PROTOCOL_MINOR_MAX),
        max(readahead, READ_BYTES_MAX),
        wanted,
        _BACKGROUND_MAX,
        _BACKGROUND_MAX * 3 // 4,
        _WRITE_BYTES_MAX,
        1,  # ns, the granularity of times
        READ_BYTES_MAX // 4096,
        0,
        wanted2,
        0,
        timeout_s if wanted2 & _REQUEST_TIMEOUT else 0,
    )
    return answer(unique, body)


def resend_notice() -> bytes:
    """Asks the kernel for all requests again that were taken and not answered (Linux 6.9)."""
    return _OUT.pack(OUT_BYTES, _NOTIFY_RESEND, 0)


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of a node; ``mode`` with the kind of file."""

    size: int
    mode: int
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 1

    def encode(self, node_id: int) -> bytes:
        """fuse_attr."""
        seconds, nanoseconds = divmod(self.mtime_ns, 10**9)
        seconds &= (1 << 64) - 1  # the kernel takes it for a signed number
        times = (seconds,) * 3, (nanoseconds,) * 3
        blocks = -(-self.size // 512)
        return _ATTR.pack(
            node_id, self.size, blocks, *times[0], *times[1], self.mode, self.nlink, self.uid, self.gid, 0, 4096, 0
        )


def entry_out(node_id: int, attributes: Attributes) -> bytes:
    """fuse_entry_out: a name that is there, for ever."""
    return _ENTRY.pack(node_id, 0, _ATTR_VALID_S, _ATTR_VALID_S, 0, 0) + attributes.encode(node_id)


def entry_answer(unique: int, node_id: int, attributes: Attributes) -> bytes:
    """The answer to LOOKUP."""
    return answer(unique, entry_out(node_id, attributes))


def attr_answer(unique: int, node_id: int, attributes: Attributes) -> bytes:
    """The answer to GETATTR."""
    return answer(unique, _GETATTR.pack(_ATTR_VALID_S, 0, 0) + attributes.encode(node_id))


def dirent(node_id: int, next_offset: int, kind: int, name: bytes, entry: bytes = b"") -> bytes:
    """One name of a READDIR, or with ``entry`` (:func:`entry_out`) of a READDIRPLUS. ``kind``: DT_*."""
    return entry + (_DIRENT.pack(node_id, next_offset, len(name), kind) + name).ljust(
        -(-(_DIRENT.size + len(name)) // 8) * 8, b"\0"
    )


def open_answer(unique: int) -> bytes:
    """The answer to OPEN: what the kernel has cached stays good."""
    return answer(unique, _OPENED.pack(0, _OPEN_KEEP_CACHE, 0))


def statfs_answer(unique: int, size: int) -> bytes:
    return answer(unique, _STATFS.pack(-(-size // 4096), 0, 0, 1, 0, 4096, 255, 4096))
