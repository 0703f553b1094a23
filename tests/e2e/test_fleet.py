"""Nodes, render servers and a proxy as processes: seqs side by side, an outage of the store, a rolling upgrade."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from synclib.core.registration import parse_registration
from tests.fleet import LEASE_S, Fleet, Load, asks, drawn, until
from tests.pictures import Dataset, encoded, picture, small_wall
from tests.render_site import Reply


def changed(files: Dataset) -> Dataset:
    """The same names with other pictures, and one more."""
    covers = {
        path: encoded(picture(number + 200, 300, 440)) for number, path in enumerate(files) if path.endswith(b".jpg")
    }
    return {**files, **covers, b"shelf/new.jpg": encoded(picture(99))}


def leads_to(reply: Reply, wall: str) -> bool:
    return reply.status == 302 and reply.headers["location"].endswith(f"/tiles/{wall}/0/0/0.jpg")


def test_two_nodes_one_seq_apart_serve_both_walls_through_one_proxy(fleet: Fleet) -> None:
    before = small_wall(40)
    after = changed(before)
    assert fleet.publish(before) == 1
    pin = fleet.data("late") / "covers/synch.active"
    pin.parent.mkdir(parents=True)
    pin.write_text("seq=1")
    for node in ("early", "late"):
        fleet.sync(node)
    early, late = fleet.render("early"), fleet.render("late")
    first = early.wall_at(1)
    assert late.wall_at(1) == first
    assert fleet.publish(after) == 2
    second = early.wall_at(2)
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active", "active"], "both are found")
    assert late.get(f"/tiles/{second}/0/0/0.jpg").headers["boxlink-wall"] == "unknown"

    tiles = {first: drawn(before), second: drawn(after)}
    for wall, expected in tiles.items():
        assert proxy.tiles(wall, expected) == expected
    # Half of the second wall's tiles belong to the node that does not hold it: it was asked, and then the other.
    assert proxy.metric("unknown_walls_total") > 0
    served = {address: backend["requests"] for address, backend in proxy.backends().items()}
    assert min(served.values()) > 50
    for place, data in tiles[first].items():
        path = f"/tiles/{first}/{place}.jpg"
        assert early.get(path).data == late.get(path).data == data

    # The late node catches up. What still leads to the wall before was said before that, and is not past its lifetime.
    assert late.get("/wall.json").json()["seq"] == 1
    proxy.get("/tiles/0/0/0.jpg")
    pin.write_text("")
    assert late.wall_at(2) == second
    caught_up = time.monotonic()

    def has_turned() -> bool:
        reply = proxy.get("/tiles/0/0/0.jpg")
        if leads_to(reply, second):
            return True
        assert leads_to(reply, first)
        age = int(reply.headers["age"])
        assert reply.headers["cache-control"] == "public, max-age=5"
        assert age <= 5
        # Age is in whole seconds, and stands for a tick of the proxy, which is one more.
        assert time.monotonic() - age - 2 <= caught_up
        return False

    until(has_turned, "the plain address leads to the new wall")
    assert proxy.tiles(second, tiles[second]) == tiles[second]


def test_the_wall_before_is_still_right_when_its_covers_have_changed_here(fleet: Fleet) -> None:
    before = small_wall(40)
    expected = drawn(before)
    fleet.publish(before)
    fleet.sync("node")
    render = fleet.render("node")
    proxy = fleet.proxy()
    first = render.wall_at(1)
    # Only the upper left corner is asked for before the change: nothing that stands further down was ever drawn.
    zoom = max(int(place.partition("/")[0]) for place in expected)
    asked = [f"{zoom}/{x}/{y}" for x in range(3) for y in range(3)]
    until(lambda: leads_to(proxy.get("/tiles/0/0/0.jpg"), first), "the plain address leads to the first wall")
    assert proxy.tiles(first, asked) == {place: expected[place] for place in asked}

    after = changed(before)
    assert fleet.publish(after) == 2
    second = render.wall_at(2)
    until(lambda: leads_to(proxy.get("/tiles/0/0/0.jpg"), second), "the plain address leads to the second wall")
    here = fleet.data("node") / "covers"
    assert all((here / path.decode()).read_bytes() == data for path, data in after.items())
    assert proxy.tiles(first, expected) == expected
    expected_second = drawn(after)
    assert proxy.tiles(second, expected_second) == expected_second


def test_an_outage_of_the_store_stops_no_request(fleet: Fleet) -> None:
    files = small_wall(150)
    tiles = drawn(files)
    fleet.publish(files)
    syncs = [fleet.sync(node) for node in ("a", "b")]
    renders = [fleet.render(node) for node in ("a", "b")]
    wall = renders[0].wall_at(1)
    assert renders[1].wall_at(1) == wall
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active", "active"], "both are found")

    mix = asks(wall, tiles, fresh_every=25)
    with Load(proxy.port, mix) as load:
        load.wait(50)
        away = fleet.store.rename(fleet.root / "away")
        until(lambda: not proxy.is_store_readable(), "the proxy sees that the store is away")
        started, first_count = time.monotonic(), proxy.metric("backend_requests_total")
        until(lambda: time.monotonic() - started > 5.5 * LEASE_S or load.failures, "five leases")
        assert not proxy.is_store_readable()
        assert list(proxy.states().values()) == ["active", "active"]
        fresh = proxy.metric("backend_requests_total") - first_count
        during = load.count
        before = {render.key: _renewed(away, render.key) for render in renders}
        away.rename(fleet.store)
        until(proxy.is_store_readable, "the proxy sees that the store is back")
        until(
            lambda: all(_renewed(fleet.store, key) > renewed for key, renewed in before.items()),
            "the registrations are renewed",
        )
        assert fleet.publish({b"shelf/new.jpg": encoded(picture(99))}) == 2
        second = renders[0].wall_at(2)
        assert renders[1].wall_at(2) == second
        until(lambda: leads_to(proxy.get("/tiles/0/0/0.jpg"), second), "the new wall is led to")
        load.wait(50)
    assert (load.failures, load.cut, load.wrong) == ([], [], [])
    assert during > 500
    assert fresh > 200
    assert set(proxy.states().values()) == {"active"}
    assert [program.process.poll() for program in [*syncs, *(render.program for render in renders)]] == [None] * 4


def _renewed(store: Path, key: str) -> int:
    return parse_registration((store / key).read_bytes()).renewed


def test_servers_are_replaced_and_killed_under_load(fleet: Fleet) -> None:
    files = small_wall(40)
    tiles = drawn(files)
    fleet.publish(files)
    fleet.sync("node")
    old, other = fleet.render("node"), fleet.render("node")
    wall = old.wall_at(1)
    proxy = fleet.proxy()
    until(lambda: set(proxy.states()) == {old.address, other.address}, "both are found")

    with Load(proxy.port, asks(wall, tiles)) as load:
        load.wait(100)
        # SIGTERM: it drains, takes its registration away, ends with 0.
        old.program.process.send_signal(signal.SIGTERM)
        until(lambda: proxy.states()[old.address] == "draining", "the proxy sees that it drains")
        assert old.key in fleet.registrations()
        assert old.program.wait(30) == 0
        assert old.program.find("stopped", unregistered=True)
        assert fleet.registrations() == [other.key]
        assert (load.failures, load.cut, load.wrong) == ([], [], [])
        until(lambda: proxy.states()[old.address] == "gone", "the proxy sees that it is gone")

        # A new one on another port is found, and takes its share.
        new = fleet.render("node")
        assert new.wall_at(1) == wall
        until(lambda: proxy.states().get(new.address) == "active", "the new one is found")
        until(lambda: proxy.backends()[new.address]["requests"] > 20, "the new one takes its share")

        # kill -9: what fails before its first byte is tried elsewhere; the lease runs out by itself.
        other.program.process.kill()
        until(lambda: proxy.states()[other.address] == "gone", "the lease runs out")
        load.wait(100)
        # Its object stands, but nobody believes it. Here a successor begins, on a port of its own.
        assert other.key in fleet.registrations()
        successor = fleet.render("node")
        assert successor.port != other.port
        until(lambda: proxy.states().get(successor.address) == "active", "the successor is found")
        until(lambda: proxy.backends()[successor.address]["requests"] > 20, "the successor takes its share")
    assert (load.failures, load.wrong) == ([], [])
    # A body is cut only where it was under way at that very moment: at most one a client.
    assert len(load.cut) <= 3
    assert set(load.statuses) == {200}
