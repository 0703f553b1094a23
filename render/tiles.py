"""Tiles on demand: kept, drawn once however many ask, and drawn in threads.

Tiles near full resolution are drawn from covers. All others come from their four children, down to there: the first
look at the whole of a large wall draws all of it. That is why the two have threads and caches of their own: a walk
along the shelves never waits for such work, and never pushes out tiles that took thousands of covers to make.

A flight is one drawing of one tile. Whoever wants the tile first claims it and draws; all others wait. A thread
that waits does so only for a deeper zoom than its own, so no two ever wait for each other.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from render.byte_cache import ByteCache
from render.compose import Composer
from render.core.layout import DIRECT_SHRINK_MAX
from render.core.respond import Body, body_of
from render.metrics import Metrics
from render.walls import HeldWall
from synclib.errors import Missing, Unavailable

FLIGHTS_MAX = 4096
_DIRECT_BYTES_MAX = 32 << 20
_PYRAMID_BYTES_MAX = 128 << 20

_Key = tuple[str, int, int, int]  # wall, zoom, x, y


class _Flight:
    """One drawing of one tile."""

    def __init__(self) -> None:
        self.future: Future[Body] = Future()
        # From here on nobody can cancel it: others may be waiting.
        self.future.set_running_or_notify_cancel()
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """True for the first caller only, who must then finish the flight."""
        return self._claim.acquire(blocking=False)


class Tiles:
    """Draws and keeps tiles; safe between threads."""

    def __init__(self, composer: Composer, metrics: Metrics, thread_count: int, flights_max: int = FLIGHTS_MAX) -> None:
        self._composer = composer
        self._metrics = metrics
        self._flights_max = flights_max
        self._direct: ByteCache[_Key, Body] = ByteCache(_DIRECT_BYTES_MAX, lambda body: len(body.data))
        self._pyramid: ByteCache[_Key, Body] = ByteCache(_PYRAMID_BYTES_MAX, lambda body: len(body.data))
        self._direct_threads = ThreadPoolExecutor(thread_count, "direct")
        self._pyramid_threads = ThreadPoolExecutor(thread_count, "pyramid")
        self._flights: dict[_Key, _Flight] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def find(self, wall: HeldWall, zoom: int, x: int, y: int) -> Body | None:
        """The tile, if it is kept."""
        return self._cache(wall, zoom).get((wall.id, zoom, x, y))

    def request(self, wall: HeldWall, zoom: int, x: int, y: int) -> Future[Body]:
        """The tile, soon. It fails as :meth:`Composer.from_covers` does, or is Missing when the wall is given up.

        Unavailable at once where too many tiles are being waited for.
        """
        key = (wall.id, zoom, x, y)
        flight, is_new = self._join(wall, key, self._flights_max)
        if is_new:
            is_direct = wall.layout.shrink(zoom) <= DIRECT_SHRINK_MAX
            threads = self._direct_threads if is_direct else self._pyramid_threads
            threads.submit(self._fly, wall, key, flight)
        return flight.future

    def close(self) -> None:
        """Give up what is being drawn; whoever waits gets Unavailable."""
        self._is_closed = True
        for threads in (self._direct_threads, self._pyramid_threads):
            threads.shutdown(wait=False)

    def _cache(self, wall: HeldWall, zoom: int) -> ByteCache[_Key, Body]:
        return self._direct if wall.layout.shrink(zoom) <= DIRECT_SHRINK_MAX else self._pyramid

    def _join(self, wall: HeldWall, key: _Key, flights_max: int | None = None) -> tuple[_Flight, bool]:
        """The tile's flight, and whether it is a new one. A tile that is kept is a flight that has arrived."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = _Flight()
            if (kept := self.find(wall, *key[1:])) is not None:
                flight.claim()
                flight.future.set_result(kept)
                return flight, False
            if flights_max is not None and len(self._flights) >= flights_max:
                raise Unavailable("too many tiles are being drawn")
            self._flights[key] = flight
            return flight, True

    def _get(self, wall: HeldWall, key: _Key) -> Body:
        """The tile, in a thread that draws: by drawing it here, or by waiting for the one that does."""
        flight, _ = self._join(wall, key)
        self._fly(wall, key, flight)
        return flight.future.result()

    def _fly(self, wall: HeldWall, key: _Key, flight: _Flight) -> None:
        if not flight.claim():
            return
        try:
            body = body_of(self._draw(wall, key), "image/jpeg")
        except BaseException as error:
            self._land(key)
            flight.future.set_exception(error)
        else:
            self._cache(wall, key[1]).put(key, body)
            self._land(key)
            flight.future.set_result(body)

    def _land(self, key: _Key) -> None:
        with self._lock:
            del self._flights[key]

    def _draw(self, wall: HeldWall, key: _Key) -> bytes:
        if self._is_closed:
            raise Unavailable("the server is stopping")
        _, zoom, x, y = key
        shrink = wall.layout.shrink(zoom)
        if shrink <= DIRECT_SHRINK_MAX:
            with wall.use():
                data = self._composer.from_covers(wall, zoom, x, y)
            self._metrics.tile("covers")
            return data
        if wall.is_retired:
            raise Missing("this wall is not held here", key=wall.id)
        children = [None if place is None else (wall.id, *place) for place in wall.layout.children(zoom, x, y)]
        if shrink > DIRECT_SHRINK_MAX + 1:
            self._share(wall, [child for child in children if child is not None])
        data = self._composer.from_children(
            [None if child is None else self._get(wall, child).data for child in children]
        )
        self._metrics.tile("tiles")
        return data

    def _share(self, wall: HeldWall, children: list[_Key]) -> None:
        """Let idle threads take the later children; this thread begins with the first."""
        for child in children[1:]:
            flight, is_new = self._join(wall, child)
            if is_new and not self._is_closed:
                self._pyramid_threads.submit(self._fly, wall, child, flight)
