from __future__ import annotations

import pytest

from render.core import respond
from render.core.address import CurrentAddress, NamesAddress, TileAddress, parse_address, tile_path
from render.core.captions import LINE_BYTES_MAX, Caption, parse_line, read_captions, split_lines
from render.core.cell import STAND, cover_box
from render.core.covers import Covers, collect_covers
from render.core.layout import layout_of
from render.core.text import drawable, ellipsize, wrap
from render.core.wall import wall_id
from synclib.core.entry import Entry, Kind
from synclib.errors import Corrupt, Missing, Unavailable

WALL = "0123456789abcdef0123456789abcdef"


def test_addresses() -> None:
    assert parse_address(f"{WALL}/3/0/12.jpg") == TileAddress(WALL, 3, 0, 12)
    assert parse_address("3/0/12.jpg") == CurrentAddress(3, 0, 12)
    assert parse_address(f"{WALL}/names/7.json") == NamesAddress(WALL, 7)
    assert parse_address(tile_path(WALL, 1, 2, 3).removeprefix("/tiles/")) == TileAddress(WALL, 1, 2, 3)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "3/0/12", "3/0/12.png", "03/0/1.jpg", "3/-1/1.jpg", "3/+1/1.jpg", "3/0/1.jpg/", "3/0/1.jpgx",
        "3/0/1.jpg\n", "٣/0/1.jpg", "3/0/1234567890.jpg", f"{WALL}/3/0/1.JPG", f"{WALL}/3/0", f"{WALL}/names/a.json",
        f"{WALL}/names/01.json", "../3/0/1.jpg", "a b/3/0/1.jpg", f"{'a' * 65}/3/0/1.jpg", "a/b/3/0/1.jpg",
    ],
)  # fmt: skip
def test_other_addresses_are_none_of_ours(path: str) -> None:
    assert parse_address(path) is None


def test_layout_of_small_walls() -> None:
    assert (layout_of(0).columns, layout_of(0).rows, layout_of(0).zoom_max) == (1, 1, 1)
    assert (layout_of(1).columns, layout_of(1).rows) == (1, 1)
    assert (layout_of(5).columns, layout_of(5).rows) == (4, 2)
    million = layout_of(1_000_000)
    assert 0.9 < million.width / million.height < 1.1
    assert million.columns % 4 == 0
    assert 256 << million.zoom_max >= max(million.width, million.height) > 128 << million.zoom_max


def test_children_end_where_the_wall_ends() -> None:
    layout = layout_of(5)  # 1280 x 1024: zoom_max 3, 5 x 4 tiles
    assert layout.zoom_max == 3
    assert layout.extent(3) == (5, 4)
    assert layout.children(2, 2, 1) == [(3, 4, 2), None, (3, 4, 3), None]
    for outside in ((3, 5, 0), (3, 0, 4), (4, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)):
        assert not layout.has_tile(*outside)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((300, 450), (300, 450)),
        ((450, 300), (300, 200)),
        ((333, 500), (300, 450)),
        ((8, 8), (16, 16)),
        ((5000, 4), (300, 1)),
        ((4, 5000), (1, 450)),
    ],
)
def test_covers_keep_their_aspect_and_stand_on_the_plank(size: tuple[int, int], shown: tuple[int, int]) -> None:
    box = cover_box(*size)
    assert (box.width, box.height) == shown
    assert box.top + box.height == STAND
    assert abs(box.left * 2 + box.width - 320) <= 1
    for shrink in (1, 2):
        small = box.shrunk(shrink)
        assert small.width >= 1
        assert small.height >= 1
        assert abs(small.left - box.left / 2**shrink) <= 1


def test_what_counts_as_a_cover() -> None:
    entries = [
        Entry(b"", b"a", Kind.DIRECTORY, 0o755),
        Entry(b"", b"catalog.jsonl", Kind.FILE),
        Entry(b"", b"one.jpg", Kind.FILE),
        Entry(b"", b"two.JPEG", Kind.FILE),
        Entry(b"", b"link.png", Kind.SYMLINK, target=b"one.jpg"),
        Entry(b"a", b"\xff.webp", Kind.FILE),
        Entry(b"a", b"notes.txt", Kind.FILE),
    ]
    covers = collect_covers(entries)
    assert [covers.path(index) for index in range(len(covers))] == [b"one.jpg", b"two.JPEG", b"a/\xff.webp"]
    assert covers.stem(2) == b"\xff"


def _covers(*paths: bytes) -> Covers:
    covers = Covers()
    for path in paths:
        covers.append(path)
    return covers


def test_captions_by_stem_and_by_path() -> None:
    covers = _covers(b"a/1.jpg", b"b/1.jpg", b"b/2.jpg", b"b/3.jpg")
    lines = [
        b'{"id":"1","title":"One","author":"A"}',
        b'{"id":"b/1.jpg","title":"One  of\\u0000\\n b"}',
        b'{"id":2,"title":"Two","pages":7}',
        b'{"id":"2","title":"Two again","author":null}',
        b'{"id":"nobody","title":"x"}',
        b"",
    ]
    captions = read_captions(covers, lines)
    assert captions.caption(0) == Caption("One", "A")
    assert captions.caption(1) == Caption("One of b", "")
    assert captions.caption(2) == Caption("Two again", "")
    assert captions.caption(3) is None
    assert (captions.matched_count, captions.malformed_count) == (4, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"null", b'{"title":"no id"}', b'{"id":""}', b'{"id":["1"]}', b'{"id":"1","title":7}', b"\xff\xfe",
        b'{"id":"\xff"}', b'{"id":"' + b"x" * 5000 + b'"}', b'{"id":"1","title":"' + b"x" * LINE_BYTES_MAX + b'"}',
        b'{"id":"1","x":' + b"[" * 20000 + b"]" * 20000 + b"}",
    ],
)  # fmt: skip
def test_malformed_lines_are_counted(line: bytes) -> None:
    captions = read_captions(_covers(b"1.jpg"), [line, b'{"id":"1","title":"still"}'])
    assert captions.malformed_count == 1
    assert captions.caption(0) == Caption("still", "")


def test_odd_text_never_breaks_a_catalog() -> None:
    for line in (b'{"id":"\\ud800","title":"\\udfff"}', b'{"id":"1","title":"\\ud83d\\ude00 \\u202e"}'):
        assert read_captions(_covers(b"1.jpg"), [line]).malformed_count in (0, 1)
    long = read_captions(_covers(b"1.jpg"), [b'{"id":"1","title":"' + b"y" * 9000 + b'"}']).caption(0)
    assert long == Caption("y" * 300, "")


def test_lines_across_pieces() -> None:
    assert list(split_lines([b"a\nb", b"c\n", b"", b"\nd"])) == [b"a", b"bc", b"", b"d"]
    giant = list(split_lines([b"x" * LINE_BYTES_MAX, b"x" * LINE_BYTES_MAX, b"x\nnext"]))
    assert len(giant) == 2
    assert parse_line(giant[0]) is None
    assert giant[1] == b"next"


def test_text_that_fits() -> None:
    assert ellipsize("short", 10, len) == "short"
    assert ellipsize("rather too long", 10, len) == "rather to…"
    assert wrap("the quick brown fox", 9, len, 5) == ["the quick", "brown fox"]
    assert wrap("the quick brown fox jumps", 9, len, 2) == ["the quick", "brown fo…"]
    assert wrap("incomprehensibilities", 8, len, 5) == ["incompr", "ehensib", "ilities"]
    assert wrap("", 8, len, 5) == []
    assert drawable("Tomás Gruß—Łódź") == "Tomas Gruss-Lodz"
    assert drawable("東京物語", "tokyo-1953") == "tokyo-1953"
    assert drawable("東京") == "··"


def test_wall_ids_follow_what_is_shown() -> None:
    assert wall_id("a" * 64) == wall_id("a" * 64)
    assert len({wall_id("a" * 64, 1), wall_id("b" * 64, 1), wall_id("a" * 64, 2)}) == 3
    assert parse_address(f"{wall_id('a' * 64)}/0/0/0.jpg") is not None


def _headers(answer: respond.Answer) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers}


def test_tiles_of_a_named_wall_leave_their_lifetime_to_the_registration() -> None:
    body = respond.body_of(b"jpeg", "image/jpeg")
    answer = respond.unchanging(body, None)
    assert answer.status == 200
    assert "cache-control" not in _headers(answer)
    assert _headers(answer)["etag"] == body.etag
    for matching in (body.etag, f"W/{body.etag}", f'"x", {body.etag}', "*"):
        again = respond.unchanging(body, matching)
        assert (again.status, again.data) == (304, b"")
        assert _headers(again)["etag"] == body.etag
    assert respond.unchanging(body, '"x"').status == 200


def test_errors_are_never_kept() -> None:
    answers = [
        respond.unknown_wall(),
        respond.not_here("x"),
        respond.refused(405, "x"),
        respond.failed(Unavailable("x")),
        respond.failed(Missing("x")),
        respond.failed(Corrupt("x")),
    ]
    assert [answer.status for answer in answers] == [404, 404, 405, 503, 503, 500]
    assert {_headers(answer)["cache-control"] for answer in answers} == {"no-store"}
    assert _headers(answers[0])["boxlink-wall"] == "unknown"
    assert all("boxlink-wall" not in _headers(answer) for answer in answers[1:])
    former = respond.failed(Missing("x"), is_former=True)
    assert (former.status, _headers(former)["boxlink-wall"]) == (503, "elsewhere")


def test_the_way_to_the_current_wall_is_short_lived() -> None:
    answer = respond.to_current(WALL, 3, 1, 2)
    assert answer.status == 302
    assert _headers(answer)["location"] == f"/tiles/{WALL}/3/1/2.jpg"
    assert _headers(answer)["cache-control"] == "public, max-age=5"
