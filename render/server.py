"""The HTTP side: finds what an address asks for and sends the answer that :mod:`render.core.respond` decides.

Runs in one event loop; drawing happens in :class:`render.tiles.Tiles`' threads.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from render.core import respond
from render.core.address import CurrentAddress, NamesAddress, TileAddress, parse_address
from render.core.layout import CELL_HEIGHT, CELL_WIDTH, TILE_PIXELS
from render.core.respond import Answer, Body, body_of
from render.core.wall import NAMES_BLOCK
from render.metrics import Metrics
from render.tiles import Tiles
from render.walls import HeldWall, Walls
from synclib.clock import Clock
from synclib.errors import BoxlinkError, Unavailable

# How long an answer waits for its tile. The drawing goes on: the next who asks finds more of it done.
TILE_WAIT_S = 5.0  # well before a proxy gives up on us
_STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _StillDrawn(Unavailable):
    """It takes longer than an answer may."""


class Site:
    """What is served: walls, their tiles and names, and the viewer."""

    def __init__(
        self, dataset: str, walls: Walls, tiles: Tiles, metrics: Metrics, log: FilteringBoundLogger,
        tile_wait_s: float = TILE_WAIT_S,
    ) -> None:  # fmt: skip
        self.is_draining = False
        self._dataset = dataset
        self._walls = walls
        self._tiles = tiles
        self._metrics = metrics
        self._log = log
        self._tile_wait_s = tile_wait_s
        self._files = {
            path.name: body_of(path.read_bytes(), _MEDIA_TYPES[path.suffix]) for path in sorted(_STATIC.iterdir())
        }

    def app(self) -> Starlette:
        routes = [
            Route("/tiles/{address:path}", self._under_tiles),
            Route("/", self._page),
            Route("/wall.json", self._wall_json),
            Route("/static/{name}", self._static),
            Route("/favicon.ico", self._favicon),
            Route("/healthz", self._healthz),
            Route("/metrics", self._metrics_text),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refuse, Exception: self._bug})

    async def _under_tiles(self, request: Request) -> Response:
        answer = await self._tile_answer(request.path_params["address"], request.headers.get("if-none-match"))
        self._metrics.answer(answer.status)
        return _send(answer)

    async def _tile_answer(self, path: str, if_none_match: str | None) -> Answer:
        address = parse_address(path)
        if address is None:
            return respond.not_here("no tile has such an address")
        if isinstance(address, CurrentAddress):
            current = self._walls.current
            if current is None or not current.layout.has_tile(address.zoom, address.x, address.y):
                return respond.not_here("the wall has no such tile")
            return respond.to_current(current.id, address.zoom, address.x, address.y)
        wall = self._walls.find(address.wall)
        if wall is None:
            return respond.unknown_wall()
        if isinstance(address, NamesAddress):
            if address.block >= wall.names_block_count:
                return respond.not_here("the wall has no such covers")
            return await self._names(wall, address, if_none_match)
        if not wall.layout.has_tile(address.zoom, address.x, address.y):
            return respond.not_here("the wall has no such tile")
        return await self._tile(wall, address, if_none_match)

    async def _names(self, wall: HeldWall, address: NamesAddress, if_none_match: str | None) -> Answer:
        try:
            # In a thread: the catalog may have to be waited for.
            return respond.unchanging(await asyncio.to_thread(names_of, wall, address.block), if_none_match)
        except BoxlinkError as error:
            return respond.failed(error)

    async def _tile(self, wall: HeldWall, address: TileAddress, if_none_match: str | None) -> Answer:
        body = self._tiles.find(wall, address.zoom, address.x, address.y)
        try:
            if body is None:
                body = await self._wait(self._tiles.request(wall, address.zoom, address.x, address.y))
        except BoxlinkError as error:
            if wall.is_retired:
                is_gone = self._walls.find(wall.id) is None
                return respond.unknown_wall() if is_gone else respond.failed(Unavailable("the wall is being replaced"))
            self._log.warning("a tile was not drawn", zoom=address.zoom, x=address.x, y=address.y, **error.as_dict())
            is_former = wall is not self._walls.current and not isinstance(error, _StillDrawn)
            return respond.failed(error, is_former=is_former)
        return respond.unchanging(body, if_none_match)

    async def _wait(self, drawing: Future[Body]) -> Body:
        waiting = asyncio.wrap_future(drawing)
        # Whoever gives up leaves the drawing to the others who wait, and its failure to no one.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(waiting), self._tile_wait_s)
        except TimeoutError:
            raise _StillDrawn("the tile is still being drawn", hint="ask again") from None

    async def _page(self, request: Request) -> Response:
        return self._kept(request, self._files["index.html"], respond.PAGE_S)

    async def _static(self, request: Request) -> Response:
        body = self._files.get(request.path_params["name"])
        return _send(respond.not_here("no such file")) if body is None else self._kept(request, body, respond.PAGE_S)

    async def _favicon(self, request: Request) -> Response:
        return self._kept(request, self._files["icon.svg"], respond.PAGE_S)

    async def _wall_json(self, request: Request) -> Response:
        wall = self._walls.current
        if wall is None:
            return _send(respond.failed(Unavailable("no wall is here yet")))
        return self._kept(request, describe(wall, self._dataset), respond.WALL_S)

    async def _healthz(self, request: Request) -> Response:
        wall = self._walls.current
        state = "draining" if self.is_draining else "ready" if wall is not None else "loading"
        shown = {"state": state, "wall": wall.id if wall else None, "seq": wall.seq if wall else None}
        body = msgspec.json.encode(shown)
        headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
        return Response(body, 200 if state == "ready" else 503, headers)

    async def _metrics_text(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return Response(self._metrics.text(), 200, headers)

    def _kept(self, request: Request, body: Body, seconds: int) -> Response:
        return _send(respond.kept(body, request.headers.get("if-none-match"), seconds))

    async def _bug(self, request: Request, error: Exception) -> Response:
        self._log.error("a request met a bug", path=request.url.path, exc_info=error)
        return _send(respond.refused(500, "a bug of ours; see the log"))


class Traffic:
    """Wraps an ASGI app to know whether requests are in flight, and how long there has been none."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._last = clock.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def begun(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        with self._lock:
            self._in_flight += 1
        try:
            await self._app(scope, receive, begun)
        except asyncio.CancelledError:
            # It ran longer than the server's end waits. A proxy asks another for what is a 503, and hands a 500 on.
            if is_begun:
                raise
            await _send(respond.refused(503, "the server ends"))(scope, receive, send)
        finally:
            with self._lock:
                self._in_flight -= 1
                self._last = self._clock.monotonic()

    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is in flight."""
        with self._lock:
            return 0.0 if self._in_flight else self._clock.monotonic() - self._last


def describe(wall: HeldWall, dataset: str) -> Body:
    """``/wall.json``: what the viewer must know of a wall."""
    layout = wall.layout
    shown = {
        "wall": wall.id,
        "dataset": dataset,
        "seq": wall.seq,
        "digest": wall.digest,
        "covers": layout.cover_count,
        "columns": layout.columns,
        "rows": layout.rows,
        "width": layout.width,
        "height": layout.height,
        "zoom_max": layout.zoom_max,
        "tile": TILE_PIXELS,
        "cell": [CELL_WIDTH, CELL_HEIGHT],
        "names_block": NAMES_BLOCK,
    }
    return body_of(msgspec.json.encode(shown), "application/json")


def names_of(wall: HeldWall, block: int) -> Body:
    """``/tiles/<wall>/names/<block>.json``: files, titles and authors of the covers of a block, in their order.

    Unavailable while the catalog is not here."""
    first = block * NAMES_BLOCK
    rows = []
    for index in range(first, min(first + NAMES_BLOCK, len(wall.covers))):
        caption = wall.caption(index)
        file = wall.covers.path(index).decode(errors="replace")
        rows.append({"file": file, "title": caption.title, "author": caption.author})
    return body_of(msgspec.json.encode({"first": first, "covers": rows}), "application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _send(respond.refused(error.status_code, error.detail, tuple((error.headers or {}).items())))


def _send(answer: Answer) -> Response:
    response = Response(answer.data, answer.status)
    response.raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    return response
