"""Requests that run while a render server is told to end: what ends in time is answered, what does not is cut."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from synclib.core.registration import parse_registration
from tests.e2e.test_render_process import Node, Server, serving, until
from tests.fleet import Fleet, Proxy, places
from tests.render_site import Reply, fetch

# A tile that takes until a file is there; and how long may what runs.
_HELD = """
import asyncio, os, sys
if "render" in sys.orig_argv:
    from synclib.core import drain
    drain.DRAIN_S = {drain_s}
    from render import server
    tile = server.Site._tile
    async def held(self, wall, address, if_none_match):
        open({begun!r}, "w").close()
        while not os.path.exists({let_go!r}):
            await asyncio.sleep(0.01)
        return await tile(self, wall, address, if_none_match)
    server.Site._tile = held
"""


class Held:
    """A node whose server holds every tile until it is let go."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.begun, self.let_go = node.root / "begun", node.root / "let-go"
        self._pool = ThreadPoolExecutor(1)

    def hold(self, drain_s: float) -> None:
        hooks = self.node.root / "hooks"
        hooks.mkdir()
        text = _HELD.format(drain_s=drain_s, begun=str(self.begun), let_go=str(self.let_go))
        (hooks / "sitecustomize.py").write_text(text)
        path = self.node.environment.get("PYTHONPATH", "")
        self.node.environment["PYTHONPATH"] = f"{hooks}:{path}".rstrip(":")

    def ask(self, port: int, path: str) -> Future[Reply]:
        """A request that is under way at the server."""
        asked = self._pool.submit(fetch, port, path)
        until(self.begun.exists)
        return asked

    def close(self) -> None:
        self.let_go.touch()
        self._pool.shutdown()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    node = Node(tmp_path)
    node.bring_down()
    held = Held(node)
    try:
        yield held
    finally:
        held.close()


def told_to_end(held: Held, server: Server) -> None:
    server.process.terminate()
    server.wait_for("draining")
    until(lambda: parse_registration(held.node.registrations()[0].read_bytes()).state == "draining")


def ask_it(held: Held, server: Server) -> tuple[int, Future[Reply]]:
    """Its port, and the answer to come."""
    ready = server.wait_for("ready")
    port = int(ready["listen"].rpartition(":")[2])
    return port, held.ask(port, f"/tiles/{ready['wall']}/0/0/0.jpg")


def is_closed(port: int) -> bool:
    try:
        fetch(port, "/healthz")
    except OSError:
        return True
    return False


def test_what_ends_in_time_is_answered(held: Held) -> None:
    """Through the proxy, which sends nothing new meanwhile."""
    held.hold(30.0)
    fleet = Fleet(held.node.root)
    try:
        with serving(held.node) as server:
            ready = server.wait_for("ready")
            proxy: Proxy = fleet.proxy()
            until(lambda: list(proxy.states().values()) == ["active"])
            asked = held.ask(proxy.port, f"/tiles/{ready['wall']}/0/0/0.jpg")
            told_to_end(held, server)
            until(lambda: list(proxy.states().values()) == ["draining"])
            assert proxy.get(f"/tiles/{ready['wall']}/{places(12)[-1]}.jpg").status == 503, "nobody takes a new one"
            assert not asked.done()
            held.let_go.touch()
            answer = asked.result(40)
            assert (answer.status, answer.data[:3]) == (200, b"\xff\xd8\xff")
            assert server.wait_for("stopped")["unregistered"] is True
            assert server.process.wait(40) == 0
            assert proxy.metric("truncated_total") == 0
    finally:
        fleet.close()


def test_what_runs_longer_is_cut(held: Held) -> None:
    """With an answer that lets a proxy ask another server."""
    held.hold(2.0)
    with serving(held.node) as server:
        _, asked = ask_it(held, server)
        told_to_end(held, server)
        # Nobody lets it go: the server ends all the same, in order.
        assert server.wait_for("stopped")["unregistered"] is True
        assert server.process.wait(40) == 0
        assert asked.result(40).status == 503
    assert held.node.registrations() == []
    assert not held.let_go.exists()


def test_a_store_that_is_away_cuts_nothing_short(held: Held) -> None:
    """Nobody can be told of the drain, so nobody is waited for; what runs has its time all the same."""
    held.hold(30.0)
    with serving(held.node) as server:
        port, asked = ask_it(held, server)
        store = held.node.root / "store"
        store.rename(held.node.root / "away")
        store.write_text("no directory")  # else a put would make it anew
        server.process.terminate()
        server.wait_for("draining")
        until(lambda: is_closed(port))
        assert not asked.done()
        held.let_go.touch()
        assert asked.result(40).status == 200
        assert server.process.wait(40) == 0
