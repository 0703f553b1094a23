"""Maps: what is written is found again, at any position; hostile ones give an error, never a wrong extent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from synclib.core import zstd
from synclib.core.entry import ChunkRef
from synclib.core.extent_map import (
    MAGIC,
    PAGE_DIGEST_BYTES,
    PAGE_PLAIN_MAX,
    Extent,
    MapTail,
    PageInfo,
    decode_page,
    decode_tail,
    encode_map,
    encode_tail,
)
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.lazy.maps import Layered, file_map
from tests.property.test_fuzz import bounded, mutations
from tests.samples import sample_map
from tests.strategies import chunks


@st.composite
def extents(draw: st.DrawFn) -> list[Extent]:
    position, found = 4096, []
    for gap, chunk in draw(st.lists(st.tuples(st.integers(0, 1 << 22), chunks()), min_size=1, max_size=60)):
        position = max(position + gap, found[-1].position // 4096 * 4096 + 4096 if found else 0)
        found.append(Extent(position, chunk))
        position += chunk.plain_bytes
    return found


def read(data: bytes) -> tuple[MapTail, dict[int, bytes]]:
    tail = decode_tail(data[-tail_bytes(MAGIC, "map", data[-FOOTER_BYTES:]) :], len(data))
    return tail, {page.offset: data[page.offset : page.offset + page.stored_bytes] for page in tail.pages}


@given(extents(), st.integers(0, 1 << 30), st.integers(1, 1 << 23))
def test_what_overlaps_a_range_is_found(found: list[Extent], start: int, length: int) -> None:
    tail, pages = read(b"".join(encode_map(found)))
    again = [
        extent
        for info in tail.pages
        for extent in decode_page(info, pages[info.offset]).overlapping(start, start + length)
    ]
    assert again == [extent for extent in found if extent.position < start + length and extent.stop > start]


def test_a_large_map_has_pages_of_at_most_64_kib_each_with_its_place() -> None:
    found = [
        Extent(
            number * 24_576, ChunkRef(blake3(b"%d" % number).digest(), b"%016d" % (number // 3), 40, 20_000, 20_000, 0)
        )
        for number in range(1, 5000)
    ]
    tail, pages = read(b"".join(encode_map(found)))
    assert len(tail.pages) > 4
    assert all(info.plain_bytes <= PAGE_PLAIN_MAX for info in tail.pages)
    assert [info.first for info in tail.pages] == sorted(info.first for info in tail.pages)
    decoded = [decode_page(info, pages[info.offset]) for info in tail.pages]
    assert [page.extent(index) for page in decoded for index in range(len(page))] == found


@given(mutations())
@settings(max_examples=200)
def test_a_page_with_a_right_digest(mutate: Callable[[bytes], bytes]) -> None:
    tail, pages = read(sample_map()[0])
    (info,) = tail.pages
    plain = mutate(zstd.decompress(pages[info.offset], info.plain_bytes))
    stored = zstd.compress(plain)
    digest = blake3(stored).digest(PAGE_DIGEST_BYTES)
    forged = PageInfo(info.first, info.last, info.stop, info.offset, len(stored), len(plain), info.extent_count, digest)
    with bounded():
        page = decode_page(forged, stored)
        found = [page.extent(index) for index in range(len(page))]
        assert found[0].position == info.first
        assert found[-1].stop == info.stop
        assert all(before.stop <= after.position for before, after in itertools.pairwise(found))


@given(mutations())
@settings(max_examples=200)
def test_a_tail_with_right_digests(mutate: Callable[[bytes], bytes]) -> None:
    data = sample_map()[0]
    tail, _ = read(data)
    offset = len(data) - tail_bytes(MAGIC, "map", data[-FOOTER_BYTES:])
    good = encode_tail(tail, offset)
    plain = mutate(zstd.decompress(good[:-FOOTER_BYTES], int.from_bytes(good[-52:-48], "little")))
    stored = zstd.compress(plain)
    footer = bytearray(good[-FOOTER_BYTES:])
    footer[8:12] = len(stored).to_bytes(4, "little")
    footer[12:16] = len(plain).to_bytes(4, "little")
    footer[16:48] = blake3(stored).digest()
    forged = stored + bytes(footer)
    with bounded():
        assert decode_tail(forged, offset + len(forged)).extent_count >= 0


@given(mutations())
def test_bytes_that_were_changed_are_refused(mutate: Callable[[bytes], bytes]) -> None:
    data = sample_map()[0]
    damaged = mutate(data)
    if damaged == data:
        return
    with bounded():
        tail, pages = read(damaged)
        for info in tail.pages:
            decode_page(info, pages[info.offset])


def test_of_two_maps_the_newer_says_where_a_content_is(tmp_path: Path) -> None:
    chunk = ChunkRef(b"h" * 32, b"a" * 16, 0, 10, 10, 0)
    moved = ChunkRef(b"h" * 32, b"b" * 16, 50, 10, 10, 0)
    for name, found in (
        ("old", [Extent(4096, chunk), Extent(8192, chunk)]),
        ("new", [Extent(8192, moved), Extent(12288, chunk)]),
    ):
        (tmp_path / name).write_bytes(b"".join(encode_map(found)))
    with (tmp_path / "new").open("rb") as new, (tmp_path / "old").open("rb") as old:
        both = Layered([file_map(new), file_map(old)])
        expected = [Extent(4096, chunk), Extent(8192, moved), Extent(12288, chunk)]
        assert both.overlapping(0, 1 << 20) == expected
        walked = [extent for page in both.walk() for extent in page]
        assert sorted(walked, key=lambda extent: extent.position) == expected
