"""The map of a dataset's address space: which bytes of which pack stand at a position, and what they must be.

Normative table: docs/format/map.md. An immutable object in pages, each found by the index at its end, so that a reader
holds the index and the pages it used last, whatever the size of the dataset.

    header   16 B   magic, version, feature bits
    pages           zstd, each at most 64 KiB before: columns of extents, by position
    tail            zstd: for each page its first position, place and digest
    footer   64 B   place of the tail, its BLAKE3-256, version, magic
"""

from __future__ import annotations

import bisect
import operator
import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from blake3 import blake3

from synclib.core import zstd
from synclib.core.entry import ADDRESS_MAX, ADDRESS_UNIT, CHUNK_BYTES_MAX, HASH_BYTES, OFFSET_MAX, ULID_BYTES, ChunkRef
from synclib.core.frame import DECODE_ERRORS, VERSION
from synclib.core.tail import open_tail, seal_tail
from synclib.errors import Corrupt

MAGIC = b"BXLE"
PAGE_PLAIN_MAX = 64 << 10
PAGE_DIGEST_BYTES = 16
POSITION_MAX = ADDRESS_MAX * ADDRESS_UNIT
_PAGE_STORED_MAX = PAGE_PLAIN_MAX + (PAGE_PLAIN_MAX >> 7)
_HEADER = struct.Struct("<4sHHQ")
_PAGE_HEADER = struct.Struct("<II")
HEADER_BYTES = _HEADER.size
# position, offset; stored, plain; pack; codec; hash
_EXTENT_BYTES = 8 + 8 + 4 + 4 + 2 + 1 + HASH_BYTES


class Extent(msgspec.Struct, frozen=True, gc=False):
    """A chunk at a position of the address space (bytes)."""

    position: int
    chunk: ChunkRef

    @property
    def stop(self) -> int:
        return self.position + self.chunk.plain_bytes


class PageInfo(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a page is, what it must be, and what it covers: no extent of another lies between first and stop."""

    first: int  # position of its first extent
    last: int  # position of its last extent
    stop: int  # where that ends
    offset: int
    stored_bytes: int
    plain_bytes: int
    extent_count: int
    digest: bytes  # BLAKE3, 16 bytes, of the stored page


class MapTail(msgspec.Struct, array_like=True, frozen=True):
    extent_count: int
    pages: list[PageInfo]


_tail_decoder = msgspec.msgpack.Decoder(MapTail)


def encode_map(extents: Iterable[Extent]) -> Iterator[bytes]:
    """A map's bytes, in pieces. ``extents`` come by position, do not overlap, and begin in units of their own."""
    yield _HEADER.pack(MAGIC, VERSION, 0, 0)
    position = HEADER_BYTES
    pages: list[PageInfo] = []
    for group in _paged(extents):
        plain = _encode_page(group)
        stored = zstd.compress(plain)
        digest = blake3(stored).digest(PAGE_DIGEST_BYTES)
        pages.append(
            PageInfo(
                group[0].position,
                group[-1].position,
                group[-1].stop,
                position,
                len(stored),
                len(plain),
                len(group),
                digest,
            )
        )
        position += len(stored)
        yield stored
    yield encode_tail(MapTail(sum(page.extent_count for page in pages), pages), position)


def _paged(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """As many extents a page as fit."""
    group: list[Extent] = []
    packs: set[bytes] = set()
    for extent in extents:
        packs.add(extent.chunk.pack)
        if _PAGE_HEADER.size + (len(group) + 1) * _EXTENT_BYTES + len(packs) * ULID_BYTES > PAGE_PLAIN_MAX:
            yield group
            group, packs = [], {extent.chunk.pack}
        group.append(extent)
    if group:
        yield group


def _encode_page(group: Sequence[Extent]) -> bytes:
    numbers: dict[bytes, int] = {}
    packs = [numbers.setdefault(extent.chunk.pack, len(numbers)) for extent in group]
    count = len(group)
    return b"".join(
        [
            _PAGE_HEADER.pack(count, len(numbers)),
            struct.pack(f"<{count}Q", *[extent.position for extent in group]),
            struct.pack(f"<{count}Q", *[extent.chunk.offset for extent in group]),
            struct.pack(f"<{count}I", *[extent.chunk.stored_bytes for extent in group]),
            struct.pack(f"<{count}I", *[extent.chunk.plain_bytes for extent in group]),
            struct.pack(f"<{count}H", *packs),
            bytes([extent.chunk.codec for extent in group]),
            b"".join([extent.chunk.hash for extent in group]),
            b"".join(numbers),
        ]
    )


class Page:
    """A decoded page: its extents by position."""

    def __init__(self, columns: tuple[Sequence[int], ...], hashes: bytes, packs: list[bytes]) -> None:
        self.positions, self._offsets, self._stored, self._plains, self._packs, self._codecs = columns
        self._hashes, self._ulids = hashes, packs

    def __len__(self) -> int:
        return len(self.positions)

    def extent(self, index: int) -> Extent:
        return Extent(
            self.positions[index],
            ChunkRef(
                self._hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES],
                self._ulids[self._packs[index]],
                self._offsets[index],
                self._stored[index],
                self._plains[index],
                self._codecs[index],
            ),
        )

    def overlapping(self, start: int, stop: int) -> Iterator[Extent]:
        """The extents that have a byte in [start, stop)."""
        index = max(bisect.bisect_right(self.positions, start) - 1, 0)
        while index < len(self.positions) and self.positions[index] < stop:
            if self.positions[index] + self._plains[index] > start:
                yield self.extent(index)
            index += 1


def decode_page(info: PageInfo, stored: bytes | memoryview) -> Page:
    """A page, verified and checked: anything but what :func:`encode_map` writes is Corrupt."""
    if len(stored) != info.stored_bytes or blake3(stored).digest(PAGE_DIGEST_BYTES) != info.digest:
        raise Corrupt("a page of a map does not have its digest")
    plain = zstd.decompress(stored, info.plain_bytes)
    count, pack_count = _PAGE_HEADER.unpack_from(plain) if len(plain) >= _PAGE_HEADER.size else (0, 0)
    if (
        count != info.extent_count
        or not 0 < pack_count <= count
        or len(plain) != _PAGE_HEADER.size + count * _EXTENT_BYTES + pack_count * ULID_BYTES
    ):
        raise Corrupt("a page of a map has not the length that its extents need")
    at = _PAGE_HEADER.size
    columns: list[Sequence[int]] = []
    for letter, size in (("Q", 8), ("Q", 8), ("I", 4), ("I", 4), ("H", 2), ("B", 1)):
        columns.append(struct.unpack_from(f"<{count}{letter}", plain, at))
        at += count * size
    hashes = plain[at : at + count * HASH_BYTES]
    at += count * HASH_BYTES
    packs = [plain[at + number * ULID_BYTES : at + (number + 1) * ULID_BYTES] for number in range(pack_count)]
    _check_columns(info, columns, pack_count)
    return Page(tuple(columns), hashes, packs)


def _check_columns(info: PageInfo, columns: Sequence[Sequence[int]], pack_count: int) -> None:
    positions, offsets, stored, plains, packs, codecs = columns
    stops = list(map(operator.add, positions, plains))
    units = [position // ADDRESS_UNIT for position in positions]
    raw_or_zstd = all(codec == 1 or (codec == 0 and s == p) for codec, s, p in zip(codecs, stored, plains, strict=True))
    if (
        positions[0] != info.first
        or positions[-1] != info.last
        or stops[-1] != info.stop
        or not all(map(operator.le, stops, positions[1:]))
        or not all(map(operator.lt, units, units[1:]))
        or not 0 < min(plains) <= max(plains) <= CHUNK_BYTES_MAX
        or not min(stored) > 0
        or not all(map(operator.le, stored, plains))
        or max(offsets) >= OFFSET_MAX
        or max(packs) >= pack_count
        or not raw_or_zstd
    ):
        raise Corrupt("an extent of a map is impossible")


def encode_tail(tail: MapTail, tail_offset: int) -> bytes:
    """The end of a map object: tail and footer."""
    return seal_tail(MAGIC, msgspec.msgpack.encode(tail), tail_offset)


def decode_tail(data: bytes | memoryview, object_bytes: int, digest: bytes | None = None) -> MapTail:
    """The index from the last bytes of a map, which must be exactly tail and footer; ``digest``: BLAKE3-256 of them."""
    plain, offset = open_tail(MAGIC, "map", data, object_bytes, digest)
    try:
        tail = _tail_decoder.decode(plain)
    except DECODE_ERRORS as error:
        raise Corrupt(f"a map's tail does not decode: {error}") from error
    return _check_tail(tail, offset)


def _check_tail(tail: MapTail, tail_offset: int) -> MapTail:
    offset, position, unit = HEADER_BYTES, 0, -1
    for page in tail.pages:
        if (
            page.offset != offset
            or not 0 < page.stored_bytes <= _PAGE_STORED_MAX
            or not 0 < page.plain_bytes <= PAGE_PLAIN_MAX
            or not 0 < page.extent_count <= page.plain_bytes
            or not position <= page.first <= page.last < page.stop <= POSITION_MAX
            or page.first // ADDRESS_UNIT == unit
        ):
            raise Corrupt("a map's index is impossible")
        offset += page.stored_bytes
        position, unit = page.stop, page.last // ADDRESS_UNIT
    if offset != tail_offset or tail.extent_count != sum(page.extent_count for page in tail.pages):
        raise Corrupt("a map's tail is impossible")
    return tail
