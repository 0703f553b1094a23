"""The wall in Debian's Chromium, as a visitor meets it: through the proxy, from nodes that follow a store."""

from __future__ import annotations

from PIL import Image

from tests.browser import Visit, chromium, colour_count, difference, needs_chromium
from tests.fleet import Fleet, until
from tools.demo.covers import make_covers

COVERS = 40

pytestmark = needs_chromium


def test_a_visit(fleet: Fleet) -> None:
    make_covers(fleet.source / "covers", COVERS, 1)
    fleet.publish({})
    for node in ("a", "b"):
        fleet.sync(node)
    for render in [fleet.render(node) for node in ("a", "b")]:
        render.ready()
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active", "active"], "both are found")
    with chromium() as browser:
        look_around(Visit(browser, proxy.port), fleet)


def look_around(visit: Visit, fleet: Fleet) -> None:
    page = visit.page
    # The whole wall: covers, not wood alone.
    home = visit.settle(covers=COVERS, seq=1)
    assert colour_count(visit.pixels()) > 20

    # Into it by the wheel, then by the button, to full resolution and beyond.
    page.mouse.move(420, 330)
    for _ in range(3):
        page.mouse.wheel(0, -150)
    visit.wait_for_zoom(float(home["zoom"]) + 0.5)
    zoom_max = page.evaluate("fetch('/wall.json').then((answer) => answer.json())")["zoom_max"]
    while (zoom := float(visit.settle()["zoom"])) < zoom_max:
        page.click('button[data-act="in"]')
        visit.wait_for_zoom(min(zoom + 1, zoom_max))
    assert colour_count(visit.pixels()) > 8

    # Along it by the mouse: another place, whose address leads back to it.
    before = visit.pixels()
    link = page.evaluate("location.hash")
    page.mouse.move(700, 500)
    page.mouse.down()
    page.mouse.move(300, 250, steps=5)
    page.mouse.up()
    page.wait_for_function("(hash) => location.hash !== hash", arg=link)
    visit.settle()
    panned = visit.pixels()
    assert difference(panned, before) > 10
    place = page.evaluate("location.hash")
    page.reload()
    visit.settle()
    assert difference(visit.pixels(), panned) < 3

    # A new seq comes by itself, with its covers, and the visitor stays where they were.
    page.evaluate("window.isSameVisit = true")
    for path in (fleet.source / "covers").rglob("*.jpg"):
        Image.new("RGB", (300, 450), (200, 30, 30)).save(path)
    assert fleet.publish({}) == 2
    visit.settle(seq=2)
    assert page.evaluate("[window.isSameVisit, location.hash]") == [True, place]
    now = visit.pixels()
    red = (now[..., 0] > 150) & (now[..., 1] < 90) & (now[..., 2] < 90)
    assert red.mean() > 0.2
    page.click('button[data-act="home"]')
    visit.settle(zoom=home["zoom"])
    assert visit.troubles == []
    assert visit.settle()["tilesFailed"] == "0"
