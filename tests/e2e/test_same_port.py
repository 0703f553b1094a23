"""A server takes another's place on the same port, under load: not one request is lost."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemEntropy
from synclib.errors import Invalid
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE, Rolled
from tests.fleet import Fleet, Load, asks, drawn, until
from tests.pictures import small_wall
from tools.addresses import bind
from tools.fleet.free_port import free_port
from tools.fleet.local_nodes import nodes
from tools.shared_listener import HandOut, shared_bind

PROXY = """
role = "proxy"

[values]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
poll = "0.3"

[[process]]
name = "proxy"
run = ["boxlink", "proxy", "--listen", "{listen}", "--share", "--admin", "{admin}", "--poll", "{poll}"]
"""


@pytest.fixture
def rolled(fleet: Fleet) -> Iterator[Rolled]:
    rolled = Rolled(fleet)
    try:
        yield rolled
    finally:
        rolled.close()


class NewConnections:
    """Clients that open a connection for each request, so that some are always waiting to be accepted."""

    def __init__(self, port: int, path: str, expected: bytes, clients: int = 6) -> None:
        self.answered, self.failures = itertools.count(), list[str]()
        self.count = 0
        self._port, self._path, self._expected = port, path, expected
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> NewConnections:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                connection.request("GET", self._path, headers={"Connection": "close"})
                answer = connection.getresponse()
                if answer.status != 200 or answer.read() != self._expected:
                    self.failures.append(f"{answer.status}")
                connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            self.count = next(self.answered)


def test_a_proxy_is_replaced_on_its_port(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    rolled.launch(1)
    role = fleet.root / "proxy.toml"
    role.write_text(PROXY)
    port = free_port((), SystemEntropy())
    place = str(fleet.root / "proxies")
    rolled.boxlink("launch", str(role), "--local", place, "--set", f"listen=127.0.0.1:{port}")

    def is_served() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/wall.json")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    try:
        until(is_served, "the wall is served through the proxy")
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/wall.json")
        wall = connection.getresponse().read()
        name = json.loads(wall)["wall"]
        tiles = drawn(small_wall(10))
        at, tile = next(iter(tiles.items()))
        with Load(port, asks(name, tiles)) as load, NewConnections(port, f"/tiles/{name}/{at}.jpg", tile) as others:
            load.wait(300)
            done = rolled.boxlink("upgrade", "proxy", "--local", place, "--bake", "0", "--set", "poll=0.4")
            before = others.count
            load.wait(300)
            until(lambda: others.count > before + 100, "new connections are accepted")
        assert (load.failures, load.wrong, load.cut, others.failures) == ([], [], [], [])
        assert done["state"] == "done"
        assert [node.node for node in nodes(Path(place))] == ["proxy-000001-1"], "the old one has ended"
        assert rolled.boxlink("upgrade", "proxy", "--local", place, "--set", "poll=0.4")["id"] is None
    finally:
        rolled.boxlink("launch", "proxy", "--local", place, "--node", "proxy-000001-1", "--stop")


def test_a_render_server_is_replaced_on_its_port(rolled: Rolled) -> None:
    fleet = rolled.fleet
    rolled.role.write_text(ROLE.replace('"--lease", "2"', '"--lease", "2", "--share"'))
    fleet.publish(small_wall(10))
    port = free_port((), SystemEntropy())
    rolled.boxlink(
        "launch", str(rolled.role), "--local", str(rolled.place), "--seq", "covers=1", "--set",
        f"listen=127.0.0.1:{port}",
    )  # fmt: skip
    until(lambda: fleet.registrations() == [f"proxy/127.0.0.1.p{port}"], "it has registered")
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/wall.json")
    name = json.loads(connection.getresponse().read())["wall"]
    fleet.publish(changed(small_wall(10)))
    tiles = drawn(small_wall(10))
    at, tile = next(iter(tiles.items()))
    with Load(port, asks(name, tiles)) as load, NewConnections(port, f"/tiles/{name}/{at}.jpg", tile) as others:
        load.wait(300)
        done = rolled.boxlink("upgrade", "render", "--local", str(rolled.place), "--bake", "0", "--seq", "covers=2")
        load.wait(300)
    assert (load.failures, load.wrong, load.cut, others.failures) == ([], [], [], [])
    assert done["state"] == "done"
    assert rolled.names() == ["render-000001-1"]
    assert fleet.registrations() == [f"proxy/127.0.0.1.p{port}"], "the new one's, which the old one left alone"


def test_what_waits_to_be_accepted_is_the_successors() -> None:
    """The old server never accepted it, and is gone."""
    old, was_handed = shared_bind("127.0.0.1", free_port((), SystemEntropy()))
    assert not was_handed
    old.listen()
    address = old.getsockname()
    hand = HandOut(old)
    successor: list[tuple[socket.socket, bool]] = []

    def take() -> bool:
        successor.append(shared_bind(*address))
        return successor[-1][1]

    until(take, "it is handed over")
    with socket.create_connection(address) as client:
        assert not hand.close(), "nobody has come to the door"
        old.close()
        new = successor[-1][0]
        with new, new.accept()[0] as accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_who_does_not_share_keeps_its_port() -> None:
    with bind("127.0.0.1", 0) as alone:
        alone.listen()
        with pytest.raises(Invalid, match="cannot listen"):
            shared_bind(*alone.getsockname())


def test_the_door_is_the_next_ones_when_the_one_before_has_closed_it() -> None:
    first = bind("127.0.0.1", 0)
    first.listen()
    address = first.getsockname()
    one = HandOut(first)
    until(lambda: shared_bind(*address)[1], "the first hands out")
    second = HandOut(first)
    assert one.close(), "the second has come to the door"
    assert not second.close(), "and is the last"
    first.close()
