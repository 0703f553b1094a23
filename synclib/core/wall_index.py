"""The wall index: the paths of a run's pictures, in the order of paths, so that a wall is laid out without a listing.

Normative table: docs/format/wall.md. An immutable object in pages, found by the index at its end:

    header   16 B   magic, version, feature bits
    pages           zstd, each at most 1 MiB before: lengths, then paths
    tail            zstd: for each page its place, lengths, number of paths and digest
    footer   64 B   place of the tail, its BLAKE3-256, version, magic
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterator

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import Entry, Kind
from synclib.core.frame import DECODE_ERRORS, VERSION, check_version
from synclib.core.names import (
    PATH_BYTES_MAX,
    check_component,
    check_directory,
    is_reserved,
    split_path,
)
from synclib.core.tail import open_tail, seal_tail
from synclib.errors import Corrupt

MAGIC = b"BXLW"
PAGE_PLAIN_MAX = 1 << 20
PAGE_DIGEST_BYTES = 16
# Files whose names promise a picture. What the bytes really hold is seen when it is drawn.
SUFFIXES = (b".jpg", b".jpeg", b".png", b".webp", b".gif", b".avif")
_PAGE_STORED_MAX = PAGE_PLAIN_MAX + (PAGE_PLAIN_MAX >> 7)
_HEADER = struct.Struct("<4sHHQ")
_COUNT = struct.Struct("<I")
HEADER_BYTES = _HEADER.size


class WallPage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a page is, and what it must be."""

    offset: int
    stored_bytes: int
    plain_bytes: int
    path_count: int
    digest: bytes  # BLAKE3, 16 bytes, of the stored page


class WallTail(msgspec.Struct, array_like=True, frozen=True):
    path_count: int
    pages: list[WallPage]


_tail_decoder = msgspec.msgpack.Decoder(WallTail)


def is_picture(entry: Entry) -> bool:
    """Whether an entry gets a place on the wall."""
    return entry.kind == Kind.FILE and entry.name.lower().endswith(SUFFIXES)


class WallIndexBuilder:
    """Takes paths in order; what :meth:`add` and :meth:`finish` return are the object's bytes, one after the other."""

    def __init__(self) -> None:
        self._pages: list[WallPage] = []
        self._lengths = array("H")
        self._paths = bytearray()
        self._position = 0
        self.path_count = 0

    def add(self, path: bytes) -> bytes:
        done = b""
        if _plain_bytes(len(self._lengths) + 1, len(self._paths) + len(path)) > PAGE_PLAIN_MAX:
            done = self._end_page()
        self._lengths.append(len(path))
        self._paths += path
        self.path_count += 1
        return done

    def finish(self) -> bytes:
        done = self._end_page() if self._lengths else self._begin()
        tail = WallTail(self.path_count, self._pages)
        return done + seal_tail(MAGIC, msgspec.msgpack.encode(tail), self._position)

    def _begin(self) -> bytes:
        """The header, before anything else."""
        if self._position:
            return b""
        self._position = HEADER_BYTES
        return _HEADER.pack(MAGIC, VERSION, 0, 0)

    def _end_page(self) -> bytes:
        header = self._begin()
        plain = b"".join([_COUNT.pack(len(self._lengths)), _little(self._lengths).tobytes(), self._paths])
        stored = zstd.compress(plain)
        digest = blake3(stored).digest(PAGE_DIGEST_BYTES)
        self._pages.append(WallPage(self._position, len(stored), len(plain), len(self._lengths), digest))
        self._position += len(stored)
        self._lengths, self._paths = array("H"), bytearray()
        return header + stored


def _plain_bytes(path_count: int, path_bytes: int) -> int:
    return _COUNT.size + 2 * path_count + path_bytes


def _little(lengths: array[int]) -> array[int]:
    """The same numbers, as bytes the least significant first on every machine."""
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        lengths.byteswap()
    return lengths


def check_wall_header(data: bytes | memoryview) -> None:
    """Corrupt or Unsupported unless these are the first 16 bytes of a wall index that can be read here."""
    if len(data) != HEADER_BYTES:
        raise Corrupt("a wall index is too short for its header")
    magic, version, _, features = _HEADER.unpack(data)
    check_version(MAGIC, magic, version, features)


def check_wall_page(page: WallPage, stored: bytes | memoryview) -> None:
    """Corrupt unless a page's stored bytes have the digest that the tail names."""
    if len(stored) != page.stored_bytes or blake3(stored).digest(PAGE_DIGEST_BYTES) != page.digest:
        raise Corrupt("a page of a wall index does not have its digest")


def decode_wall_page(page: WallPage, stored: bytes | memoryview) -> tuple[array[int], bytes]:
    """(lengths, all paths one after the other) of a page, verified: anything but what the builder writes is Corrupt.
    What the paths are is not looked at."""
    check_wall_page(page, stored)
    plain = zstd.decompress(stored, page.plain_bytes)
    lengths = array("H")
    if len(plain) >= _plain_bytes(page.path_count, 0) and _COUNT.unpack_from(plain) == (page.path_count,):
        lengths.frombytes(plain[_COUNT.size : _plain_bytes(page.path_count, 0)])
        _little(lengths)
    if (
        len(lengths) != page.path_count
        or _plain_bytes(page.path_count, sum(lengths)) != len(plain)
        or not 0 < min(lengths) <= max(lengths) <= PATH_BYTES_MAX
    ):
        raise Corrupt("a page of a wall index has not the length that its paths need")
    return lengths, plain[_plain_bytes(page.path_count, 0) :]


def decode_wall_tail(data: bytes | memoryview, object_bytes: int, digest: bytes | None = None) -> WallTail:
    """The index from the last bytes of a wall index, which must be exactly tail and footer; ``digest``: BLAKE3-256 of
    them."""
    plain, offset = open_tail(MAGIC, "wall", data, object_bytes, digest)
    try:
        tail = _tail_decoder.decode(plain)
    except DECODE_ERRORS as error:
        raise Corrupt(f"a wall index's tail does not decode: {error}") from error
    position = HEADER_BYTES
    for page in tail.pages:
        if (
            page.offset != position
            or not 0 < page.stored_bytes <= _PAGE_STORED_MAX
            or not 0 < page.plain_bytes <= PAGE_PLAIN_MAX
            or not 0 < page.path_count <= page.plain_bytes
        ):
            raise Corrupt("a wall index is impossible")
        position += page.stored_bytes
    if position != offset or tail.path_count != sum(page.path_count for page in tail.pages):
        raise Corrupt("a wall index's tail is impossible")
    return tail


def wall_pages(
    tail: WallTail, stored: Iterator[bytes | memoryview], *, is_strict: bool = False
) -> Iterator[tuple[array[int], bytes]]:
    """The decoded pages, from their stored bytes in order. Corrupt where a path could lead out of its dataset; with
    ``is_strict`` where it is none that a dataset may have, or does not come after the one before: for a million that
    takes a second."""
    last: _Place = (b"", b"", b"")
    for page, data in zip(tail.pages, stored, strict=True):
        lengths, paths = decode_wall_page(page, data)
        _check_paths(lengths, paths)
        if is_strict:
            last = _check_each(lengths, paths, last)
        yield lengths, paths


_Place = tuple[bytes, bytes, bytes]  # of a path in the order of paths: its directory with NUL for "/", NUL, its name
# Only in a page that has one of these there may be "..", or an empty name or "." within a path, or a marker of ours.
_ODD = (b"//", b"./", b"..", b"synch.")


def _check_paths(lengths: array[int], paths: bytes) -> None:
    """Many at once: a wall has a million, and is waited for."""
    if b"\0" in paths:
        raise Corrupt("a wall index has a path with NUL")
    if any(odd in paths for odd in _ODD):
        for start, stop in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
            _check_path(paths[start:stop])


def _check_each(lengths: array[int], paths: bytes, last: _Place) -> _Place:
    """The last path's place."""
    for start, stop in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        path = paths[start:stop]
        _check_path(path)
        place = path.replace(b"/", b"\0").rpartition(b"\0")
        if not last < place:
            raise Corrupt("the paths of a wall index are not in order, each once")
        last = place
    return last


def _check_path(path: bytes) -> None:
    directory, name = split_path(path)
    check_component(name)
    check_directory(directory)
    if is_reserved(directory, name):
        raise Corrupt(f"a wall index has a path that no dataset has: {path!r}")
