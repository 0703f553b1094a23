"""A render server over a real socket, in this process."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog

from render.compose import Composer
from render.metrics import Metrics
from render.server import Site, Traffic
from render.tiles import Tiles
from render.walls import HeldWall, Walls, load_wall
from synclib.clock import SystemClock
from tests.memory_reader import MemoryReader
from tools.addresses import bind
from tools.render_daemon import HttpThread


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    data: bytes

    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.data)
        return found


def fetch(port: int, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        data = answer.read()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)
    finally:
        connection.close()


@dataclass
class RunningSite:
    port: int
    site: Site
    walls: Walls
    metrics: Metrics
    traffic: Traffic

    def show(self, reader: MemoryReader) -> HeldWall:
        wall = load_wall(lambda seq: reader, reader.seq, reader.digest)
        self.walls.show(wall)
        self.metrics.wall(wall.seq, len(wall.covers))
        return wall

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return fetch(self.port, path, method, {name.replace("_", "-"): value for name, value in headers.items()})


@contextlib.contextmanager
def running_site(tile_wait_s: float = 20, keep: int = 2) -> Iterator[RunningSite]:
    walls, metrics = Walls(keep), Metrics()
    tiles = Tiles(Composer(metrics), metrics, 2)
    site = Site("covers", walls, tiles, metrics, structlog.get_logger(), tile_wait_s)
    traffic = Traffic(site.app(), SystemClock())
    listener = bind("127.0.0.1", 0)
    http_thread = HttpThread(traffic, listener)
    http_thread.start()
    try:
        yield RunningSite(listener.getsockname()[1], site, walls, metrics, traffic)
    finally:
        http_thread.stop()
        tiles.close()
        walls.close()
