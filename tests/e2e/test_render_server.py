"""The tile server over a real socket."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
import structlog
from PIL import Image
from structlog.testing import capture_logs

from render.walls import load_wall
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from tests.memory_reader import MemoryReader
from tests.pictures import small_wall
from tests.render_site import RunningSite, running_site
from tests.unit.test_render_tiles import GatedReader


@pytest.fixture(scope="module")
def module_site() -> Iterator[RunningSite]:
    with running_site() as site:
        yield site


@pytest.fixture
def site(module_site: RunningSite) -> RunningSite:
    module_site.show(MemoryReader(small_wall(23)))
    return module_site


def _tile(site: RunningSite, zoom: int = 2, x: int = 0, y: int = 0) -> str:
    assert site.walls.current is not None
    return f"/tiles/{site.walls.current.id}/{zoom}/{x}/{y}.jpg"


def test_a_tile(site: RunningSite) -> None:
    reply = site.get(_tile(site))
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/jpeg"
    assert "cache-control" not in reply.headers
    assert "date" in reply.headers
    assert Image.open(io.BytesIO(reply.data)).size == (256, 256)
    assert site.get(_tile(site)).data == reply.data


def test_head_and_validators(site: RunningSite) -> None:
    reply = site.get(_tile(site))
    head = site.get(_tile(site), "HEAD")
    assert (head.status, head.data) == (200, b"")
    assert head.headers["content-length"] == str(len(reply.data))
    assert head.headers["etag"] == reply.headers["etag"]
    assert reply.headers["etag"].startswith('"')
    same = site.get(_tile(site), if_none_match=reply.headers["etag"])
    assert (same.status, same.data) == (304, b"")
    assert same.headers["etag"] == reply.headers["etag"]
    assert site.get(_tile(site), if_none_match='"other"').status == 200


def test_two_walls_are_served_and_a_third_is_unknown(site: RunningSite) -> None:
    first = site.walls.current
    assert first is not None
    old = site.get(_tile(site, 0)).data
    site.show(MemoryReader(small_wall(7), 2))
    assert site.get(_tile(site, 0)).data != old
    assert site.get(f"/tiles/{first.id}/0/0/0.jpg").data == old
    site.show(MemoryReader(small_wall(8), 3))
    gone = site.get(f"/tiles/{first.id}/0/0/0.jpg")
    assert (gone.status, gone.headers["cache-control"]) == (404, "no-store")
    assert gone.headers["boxlink-wall"] == "unknown"
    for unknown in ("0" * 32, "nosuchwall"):
        assert site.get(f"/tiles/{unknown}/2/0/0.jpg").headers["boxlink-wall"] == "unknown"
        assert site.get(f"/tiles/{unknown}/names/0.json").headers["boxlink-wall"] == "unknown"


def test_outside_is_404_and_no_unknown_wall(site: RunningSite) -> None:
    assert site.walls.current is not None
    wall = site.walls.current
    outside = [_tile(site, wall.layout.zoom_max + 1), _tile(site, 0, 1), _tile(site, 2, 0, 99)]
    outside += [f"/tiles/{wall.id}/names/1.json", "/tiles/2/99/0.jpg", "/tiles/", "/tiles/x", "/static/../server.py"]
    outside += ["/static/nothing.js", "/nothing", f"/tiles/{wall.id}/2/0/0.png"]
    for path in outside:
        reply = site.get(path)
        assert (reply.status, reply.headers["cache-control"]) == (404, "no-store"), path
        assert "boxlink-wall" not in reply.headers


def test_the_way_to_the_current_wall(site: RunningSite) -> None:
    reply = site.get("/tiles/2/0/0.jpg")
    assert reply.status == 302
    assert reply.headers["location"] == _tile(site)
    assert reply.headers["cache-control"] == "public, max-age=5"
    assert site.get(reply.headers["location"]).status == 200


def test_other_methods_are_refused(site: RunningSite) -> None:
    for path in (_tile(site), "/", "/wall.json"):
        reply = site.get(path, "POST")
        assert (reply.status, reply.headers["cache-control"]) == (405, "no-store")
        assert "GET" in reply.headers["allow"]


def test_a_former_wall_that_cannot_be_read_now_may_be_had_elsewhere(site: RunningSite) -> None:
    reader = MemoryReader(small_wall(12), 2)
    former = site.show(reader)
    reader.failures = {path: Unavailable("the store is away") for path in small_wall(12)}
    of_the_current = site.get(_tile(site, 2))
    site.show(MemoryReader(small_wall(13), 3))
    reply = site.get(f"/tiles/{former.id}/2/0/0.jpg")
    assert (of_the_current.status, reply.status) == (503, 503)
    assert reply.headers["boxlink-wall"] == "elsewhere"
    assert "boxlink-wall" not in of_the_current.headers


@pytest.mark.parametrize(("error", "status"), [(Unavailable("away"), 503), (Corrupt("odd"), 500)])
def test_a_cover_that_cannot_be_read_is_an_error(site: RunningSite, error: BoxlinkError, status: int) -> None:
    reader = MemoryReader(small_wall(30 + status % 10), status)
    site.show(reader)
    reader.failures[b"shelf/000.jpg"] = error
    for zoom in (0, 3):
        reply = site.get(_tile(site, zoom))
        assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")
    reader.failures.clear()
    assert site.get(_tile(site, 3)).status == 200


def test_bad_covers_are_counted(site: RunningSite) -> None:
    site.show(MemoryReader({**small_wall(5), b"shelf/004.jpg": b"no picture"}, 9))
    assert site.get(_tile(site, 0)).status == 200
    shown = site.get("/metrics")
    line = 'boxlink_render_text_covers_total{reason="not_decodable"} 1.0'
    assert line in shown.data.decode()
    assert shown.headers["cache-control"] == "no-store"


def test_names(site: RunningSite) -> None:
    assert site.walls.current is not None
    reply = site.get(f"/tiles/{site.walls.current.id}/names/0.json")
    assert "cache-control" not in reply.headers
    covers = reply.json()["covers"]
    assert isinstance(covers, list)
    assert len(covers) == 23
    assert covers[0] == {"file": "shelf/000.jpg", "title": "Title 0", "author": "Somebody"}
    assert covers[1] == {"file": "shelf/001.jpg", "title": "001", "author": ""}


def test_the_wall_and_the_page_say_how_long_they_keep(site: RunningSite) -> None:
    assert site.walls.current is not None
    wall = site.get("/wall.json")
    assert wall.headers["cache-control"] == "public, max-age=2"
    told = wall.json()
    assert (told["wall"], told["covers"], told["dataset"]) == (site.walls.current.id, 23, "covers")
    assert told["columns"] == site.walls.current.layout.columns
    page = site.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for path in ("/", "/static/viewer.js", "/static/viewer.css", "/static/icon.svg", "/favicon.ico"):
        reply = site.get(path)
        assert (reply.status, reply.headers["cache-control"]) == (200, "public, max-age=60")
        assert site.get(path, if_none_match=reply.headers["etag"]).status == 304


def test_health(site: RunningSite) -> None:
    assert site.get("/healthz").status == 200
    assert site.get("/healthz").json()["state"] == "ready"
    site.site.is_draining = True
    try:
        reply = site.get("/healthz")
        assert (reply.status, reply.json()["state"]) == (503, "draining")
        assert site.get(_tile(site)).status == 200
    finally:
        site.site.is_draining = False


def test_a_tile_that_takes_long_is_asked_for_again() -> None:
    with running_site(tile_wait_s=0.05) as site:
        reader = GatedReader(12)
        wall = site.show(reader)
        path = f"/tiles/{wall.id}/0/0/0.jpg"
        assert site.get("/tiles/0/0/0.jpg").status == 302
        early = site.get(path)
        assert (early.status, early.headers["cache-control"]) == (503, "no-store")
        assert early.headers["retry-after"] == "1"
        reader.gate.set()
        # The drawing went on: soon the answer is there.
        while (late := site.get(path)).status == 503:
            pass
        assert late.status == 200


def test_before_a_wall_is_there_nothing_is_kept() -> None:
    with running_site() as site:
        assert site.get("/healthz").json()["state"] == "loading"
        for path, status in (("/wall.json", 503), ("/tiles/0/0/0.jpg", 404), ("/healthz", 503)):
            reply = site.get(path)
            assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")


@pytest.mark.parametrize("error", [Unavailable("away"), Missing("gone"), Corrupt("odd")], ids=lambda error: error.kind)
def test_a_long_catalog_that_cannot_be_read_is_read_again(error: BoxlinkError) -> None:
    files = small_wall(300)
    files[b"catalog.jsonl"] += b"\n" * (5 << 20)
    with running_site() as site, capture_logs() as logs:
        reader = MemoryReader(files)
        reader.failures[b"catalog.jsonl"] = error
        wall = load_wall(lambda seq: reader, 1, reader.digest, log=structlog.get_logger())
        site.walls.show(wall)
        while reader.read_paths.count(b"catalog.jsonl") < 2:
            pass
        assert site.get("/healthz").json()["state"] == "ready"
        deepest, above = (f"/tiles/{wall.id}/{wall.layout.zoom_max - up}/0/0.jpg" for up in (0, 2))
        for path in (deepest, f"/tiles/{wall.id}/names/0.json"):
            early = site.get(path)
            assert (early.status, early.headers["cache-control"], early.headers["retry-after"]) == (
                503,
                "no-store",
                "1",
            )
        # It shows no letters.
        assert site.get(above).status == 200
        said = [line["event"] for line in logs if "catalog" in line["event"]]
        assert said == ["a wall's catalog was not read"]
        reader.failures.clear()
        while (late := site.get(deepest)).status == 503:
            pass
        assert late.status == 200
        shown = site.get(f"/tiles/{wall.id}/names/0.json").json()["covers"]
        assert isinstance(shown, list)
        assert shown[0]["title"] == "Title 0"


def test_walls_that_are_given_up_read_no_catalog() -> None:
    files = small_wall(3)
    files[b"catalog.jsonl"] += b"\n" * (5 << 20)
    reader = MemoryReader(files)
    reader.failures[b"catalog.jsonl"] = Unavailable("away")
    wall = load_wall(lambda seq: reader, 1, reader.digest)
    wall.retire()
    for thread in threading.enumerate():
        if thread.name == "catalog":
            thread.join(20)
            assert not thread.is_alive()
    assert reader.is_closed


def test_a_short_catalog_whose_bytes_are_gone_is_no_wall_without_titles() -> None:
    reader = MemoryReader(small_wall(3))
    reader.failures[b"catalog.jsonl"] = Missing("its pack is gone")
    with pytest.raises(Missing):
        load_wall(lambda seq: reader, 1, reader.digest)
