"""The wall in Debian's Chromium, straight from a render server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from synclib.errors import Unavailable
from tests.browser import Visit, chromium, colour_count, difference, needs_chromium
from tests.memory_reader import MemoryReader, read_directory
from tests.render_site import RunningSite, running_site
from tools.demo.covers import make_covers

COVERS = 120

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("covers")
    make_covers(directory, COVERS, 1)
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def site(files: Path) -> Iterator[RunningSite]:
    with running_site() as site:
        site.show(read_directory(files))
        yield site


def test_covers_are_seen_at_every_zoom(browser: Browser, site: RunningSite) -> None:
    visit = Visit(browser, site.port)
    home = visit.settle(covers=COVERS)
    assert int(home["tilesLoaded"]) > 0
    assert colour_count(visit.pixels()) > 20
    visit.page.focus("#wall")
    for step in range(1, 4):
        visit.page.keyboard.press("+")
        visit.wait_for_zoom(float(home["zoom"]) + step)
        assert colour_count(visit.pixels()) > 8
    assert float(visit.settle()["zoom"]) == pytest.approx(float(home["zoom"]) + 3, abs=0.01)
    visit.page.keyboard.press("Home")
    visit.settle(zoom=home["zoom"])
    assert visit.troubles == []
    assert visit.settle()["tilesFailed"] == "0"
    visit.page.close()


def test_what_is_drawn_is_the_tile_itself(browser: Browser, site: RunningSite) -> None:
    assert site.walls.current is not None
    zoom = site.walls.current.layout.zoom_max
    # At full resolution, one tile right in the middle of the canvas.
    visit = Visit(browser, site.port, f"#{zoom}.00/{3 * 256 + 128}/{3 * 256 + 128}")
    visit.settle()
    shown = visit.pixels()
    top, left = shown.shape[0] // 2 - 128, shown.shape[1] // 2 - 128
    reply = site.get(site.get(f"/tiles/{zoom}/3/3.jpg").headers["location"])
    tile = np.asarray(Image.open(io.BytesIO(reply.data)))
    # A canvas of odd sides has its middle between two pixels: the tile may stand one further.
    places = [shown[top + down :, left + right :][:256, :256] for down in (0, 1) for right in (0, 1)]
    assert min(np.abs(place.astype(int) - tile.astype(int)).mean() for place in places) < 1
    assert tile.std() > 10
    visit.page.close()


def test_wheel_drag_and_a_link_to_this_view(browser: Browser, site: RunningSite) -> None:
    visit = Visit(browser, site.port)
    home = visit.settle()
    visit.page.mouse.move(500, 400)
    for _ in range(6):
        visit.page.mouse.wheel(0, -150)
    visit.page.wait_for_function("(zoom) => Number(document.body.dataset.zoom) > zoom + 1", arg=float(home["zoom"]))
    visit.settle()
    visit.page.mouse.down()
    visit.page.mouse.move(400, 330, steps=4)
    visit.page.mouse.up()
    visit.settle()
    visit.page.wait_for_function("(hash) => location.hash.length > 1 && location.hash !== hash", arg="")
    visit.page.wait_for_selector("#names li")
    before, fragment = visit.pixels(), visit.page.evaluate("location.hash")
    again = Visit(browser, site.port, fragment)
    again.settle()
    assert difference(again.pixels(), before) < 3
    assert visit.troubles == again.troubles == []
    visit.page.close()
    again.page.close()


def test_names_in_view_are_listed_and_lead_to_their_covers(browser: Browser, site: RunningSite) -> None:
    wall = site.walls.current
    assert wall is not None
    visit = Visit(browser, site.port, f"#{wall.layout.zoom_max - 1}/1600/1280")
    visit.settle()
    visit.page.click('button[aria-label="List of the covers in view"]')
    visit.page.wait_for_selector("#names li")
    names = visit.page.locator("#names li button").all_inner_texts()
    titles = {wall.caption(index).title for index in range(COVERS)}
    assert names
    assert {name.split("\n")[0] for name in names} <= titles
    visit.page.locator("#names li button").last.click()
    visit.page.wait_for_function("(hash) => location.hash !== hash", arg=visit.page.evaluate("location.hash"))
    visit.settle()
    assert visit.troubles == []
    visit.page.close()


def test_a_new_wall_comes_without_a_reset(browser: Browser, site: RunningSite, files: Path) -> None:
    assert site.walls.current is not None
    zoom = site.walls.current.layout.zoom_max - 1
    visit = Visit(browser, site.port, f"#{zoom}.00/1400/1100")
    first = visit.settle()
    cover = sorted(files.rglob("*.jpg"))[12]
    changed = MemoryReader({**_files(files), str(cover.relative_to(files)).encode(): b"no picture"}, 2)
    wall = site.show(changed)
    visit.ask_for_the_wall()
    second = visit.settle(wall=wall.id)
    assert (second["zoom"], second["seq"]) == (first["zoom"], "2")
    # A server that is behind tells of the wall before: that is no way back.
    site.show(read_directory(files))
    with visit.page.expect_response("**/wall.json"):
        visit.ask_for_the_wall()
    assert visit.settle()["wall"] == wall.id
    assert visit.troubles == []
    visit.page.close()


def test_tiles_that_fail_are_asked_for_again(browser: Browser, site: RunningSite, files: Path) -> None:
    reader = read_directory(files, 3)
    path = next(entry.path for entry in reader.walk() if entry.path.endswith(b".jpg"))
    reader.failures[path] = Unavailable("the store is away")
    site.show(reader)
    visit = Visit(browser, site.port)
    visit.page.wait_for_selector('body[data-tiles-failed="2"], body[data-tiles-failed="3"]')
    reader.failures.clear()
    assert int(visit.settle()["tilesFailed"]) >= 2
    assert colour_count(visit.pixels()) > 20
    visit.page.close()


def _files(directory: Path) -> dict[bytes, bytes]:
    return {
        str(path.relative_to(directory)).encode(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
