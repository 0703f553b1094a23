"""A render server's life: ask, wait, load, listen, register; then drain, unregister, close."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from structlog.typing import FilteringBoundLogger

from render.compose import Composer
from render.core.address import tile_path
from render.follow import POLL_S, Follower, ask, wake_on_change
from render.metrics import Metrics
from render.others import hold_walls_of_others
from render.register import Identity, Registrar
from render.server import Site, Traffic
from render.tiles import Tiles
from render.walls import HeldWall, ListCovers, OpenReader, Walls, load_wall
from synclib.clock import Clock
from synclib.core.drain import DRAIN_S, END_S
from synclib.core.markers import Down
from synclib.core.names import DOWN, ERROR, proxy_key
from synclib.errors import Invalid, Unavailable
from synclib.store.base import Store
from tools.addresses import show_address
from tools.notify import ALIVE, notify, watchdog_s
from tools.shared_listener import HandOut, shared_bind

_FIRST_POLL_S = 0.05
# So long nobody need be told that a dataset is not here: whoever brings it has just been asked.
LONG_S = 30.0
_TAKE_S, _TAKE_AGAIN_S = 30.0, 0.1
Say = Callable[..., None]  # say(event, **fields): one line for whoever started us


@dataclass(frozen=True)
class Plan:
    """What one render server is to do."""

    data: Path
    dataset: str
    node: str
    advertise_ip: str
    advertise_port: int | None  # None: the port that is listened on
    lease_s: float
    address: tuple[str, int]  # that it listens on
    release: str = ""
    is_shared: bool = False  # its port is handed to the server that takes its place
    # After "draining" is said, proxies get grace_s to see it, and requests must have stopped for quiet_s.
    grace_s: float = 5.0
    quiet_s: float = 1.0
    drain_s_max: float = DRAIN_S  # from the signal on, all in all


class Stop:
    """A wish to stop that wakes whoever waits."""

    def __init__(self) -> None:
        self.is_set = False
        self.wake = threading.Event()

    def set(self) -> None:
        self.is_set = True
        self.wake.set()


class RenderDaemon:
    """Runs until ``stop`` is set. ``listener``: bound, not listening; None where the server whose place this one takes
    shares its port: it is asked for it when there is something to serve. ``say_ready``: called in a thread each time
    that another seq is served."""

    def __init__(
        self,
        plan: Plan,
        listener: socket.socket | None,
        store: Store,
        open_reader: OpenReader,
        list_covers: ListCovers,
        say_ready: Callable[[], None],
        clock: Clock,
        log: FilteringBoundLogger,
        say: Say,
        stop: Stop,
    ) -> None:
        self._plan = plan
        self._listener = listener
        # At once: another that comes meanwhile would be told that the port is taken.
        self._shared = HandOut(listener) if plan.is_shared and listener is not None else None
        self._store = store
        self._open_reader, self._list_covers, self._say_ready = open_reader, list_covers, say_ready
        self._clock = clock
        self._log = log
        self._say = say
        self._stop = stop
        self._walls = Walls()
        self._metrics = Metrics()
        self._registrar: Registrar | None = None

    def run(self) -> None:
        """The whole life. Returns when all that was in flight is answered, or the bound for that has passed."""
        directory = self._plan.data / self._plan.dataset
        was_absent = ask(directory)
        self._log.info("asked for the dataset", dataset=self._plan.dataset, was_absent=was_absent)
        follower = Follower(directory, self._load, self._clock, self._log)
        with contextlib.ExitStack() as stack:
            stack.callback(self._walls.close)
            stack.enter_context(wake_on_change(directory, self._stop.wake, self._log))
            # What is mounted over a directory is no change of it that anybody is told of.
            waiting = Waiting(self._plan, self._clock, self._say)
            self._follow(follower, until=lambda: waiting.is_over(self._walls.current), poll_s=_FIRST_POLL_S)
            if self._stop.is_set:
                return
            tiles = Tiles(Composer(self._metrics), self._metrics, max(2, os.cpu_count() or 2))
            stack.callback(tiles.close)
            self._serve(follower, tiles)

    def _follow(self, follower: Follower, until: Callable[[], bool], poll_s: float = POLL_S) -> None:
        pause_s = min(poll_s, watchdog_s() or poll_s)
        while not self._stop.is_set:
            self._stop.wake.clear()
            notify(ALIVE)
            follower.step()
            if until():
                return
            self._stop.wake.wait(pause_s)

    def _load(self, down: Down) -> None:
        """Show what ``synch.down`` says stands here; raises what keeps it from being shown."""
        current = self._walls.current
        if current is not None and (current.seq, current.digest) == (down.seq, down.digest):
            return
        started = self._clock.monotonic()
        wall = load_wall(self._open_reader, down.seq, down.digest, self._list_covers, self._log)
        self._show(wall, self._clock.monotonic() - started)

    def _show(self, wall: HeldWall, seconds: float) -> None:
        self._walls.show(wall)
        self._metrics.wall(wall.seq, len(wall.covers))
        fields = {
            "wall": wall.id,
            "seq": wall.seq,
            "covers": len(wall.covers),
        }
        if wall.captions is not None:
            fields["catalog_matched"] = wall.captions.matched_count
            fields["catalog_malformed"] = wall.captions.malformed_count
        self._log.info("a wall is shown", seconds=round(seconds, 3), **fields)
        if self._registrar is not None:
            self._registrar.show_seq(wall.seq)
            self._say("wall", **fields)
            self._tell_ready()

    def _serve(self, follower: Follower, tiles: Tiles) -> None:
        site = Site(self._plan.dataset, self._walls, tiles, self._metrics, self._log)
        traffic = Traffic(site.app(), self._clock)
        listener = self._listener
        if listener is None:
            # From the first moment it gets requests that were meant for the one before.
            self._hold_walls_of_others()
            listener = self._take_over()
            if listener is None:
                return
        http = HttpThread(traffic, listener)
        http.start()
        if self._plan.is_shared and self._shared is None:
            self._shared = HandOut(listener)
        port = listener.getsockname()[1]
        identity = Identity(
            proxy_key(self._plan.advertise_ip, self._plan.advertise_port or port),
            self._plan.node,
            self._plan.release,
            self._plan.dataset,
            lease_s=self._plan.lease_s,
        )
        says = (self._metrics.answers, self._walls.seqs, self._probe)
        registrar = Registrar(self._store, identity, self._clock, self._log, *says)
        wall = self._walls.current
        assert wall is not None, "nothing listens before a wall is loaded"
        registrar.show_seq(wall.seq)
        registrar.start()
        self._registrar = registrar
        threading.Thread(target=self._settle, args=(registrar,), name="settle", daemon=True).start()
        listen = show_address(*listener.getsockname()[:2])
        self._say("ready", listen=listen, wall=wall.id, seq=wall.seq, registration=identity.key)
        self._log.info("ready", listen=listen, registration=identity.key)
        self._tell_ready()
        try:
            self._follow(follower, until=lambda: not http.is_alive())
            if not self._stop.is_set:
                raise Unavailable("the HTTP server ended by itself", hint="its last words are on stderr")
        except BaseException:
            registrar.remove()
            raise
        self._drain(site, traffic, registrar, http)

    def _tell_ready(self) -> None:
        """Who is told need not answer at once."""
        threading.Thread(target=self._say_ready, name="ready", daemon=True).start()

    def _take_over(self) -> socket.socket | None:
        """The socket of the server before, or, where that one has ended meanwhile, one of its own; None when told to
        stop. Between its door and its end neither can be had."""
        deadline = self._clock.monotonic() + self._plan.drain_s_max + _TAKE_S
        while not self._stop.is_set:
            notify(ALIVE)
            try:
                return shared_bind(*self._plan.address)[0]
            except Invalid:
                if self._clock.monotonic() > deadline:
                    raise
            self._stop.wake.wait(_TAKE_AGAIN_S)
            self._stop.wake.clear()
        return None

    def _probe(self) -> str:
        """A tile of the finest zoom: it takes few covers to draw."""
        wall = self._walls.current
        return "" if wall is None else tile_path(wall.id, wall.layout.zoom_max, 0, 0)

    def _settle(self, registrar: Registrar) -> None:
        """Nobody waits for it but who wants to end others."""
        self._hold_walls_of_others()
        registrar.settle()

    def _hold_walls_of_others(self) -> None:
        walls, reader, covers = self._walls, self._open_reader, self._list_covers
        hold_walls_of_others(self._store, self._plan.dataset, walls, reader, self._log, self._clock, covers)

    def _drain(self, site: Site, traffic: Traffic, registrar: Registrar, http: HttpThread) -> None:
        self._say("draining")
        self._log.info("draining")
        site.is_draining = True
        started = self._clock.monotonic()
        is_told = registrar.drain()
        is_shared = self._shared is not None and self._shared.close()
        if is_shared:
            http.let_go()
        if is_told or is_shared:
            # A proxy sends on until it has read the new state: answer what comes, until nothing comes.
            while self._clock.monotonic() - started < self._plan.drain_s_max and not (
                self._clock.monotonic() - started >= self._plan.grace_s and traffic.idle_s() >= self._plan.quiet_s
            ):
                self._clock.sleep(0.05)
        is_removed = registrar.remove()
        http.stop(started + self._plan.drain_s_max - self._clock.monotonic())
        self._log.info("stopped", is_unregistered=is_removed)
        self._say("stopped", unregistered=is_removed)


class Waiting:
    """Says what is waited for, and, when it has not come for long, what an operator may look at."""

    def __init__(self, plan: Plan, clock: Clock, say: Say) -> None:
        self._plan, self._clock, self._say = plan, clock, say
        self._since_s: float | None = None
        self._is_long = False

    def is_over(self, wall: HeldWall | None) -> bool:
        """Whether there is a wall to serve. Asked again and again; of one that is here at once nothing is said."""
        if wall is not None:
            return True
        now_s, data, dataset = self._clock.monotonic(), self._plan.data, self._plan.dataset
        if self._since_s is None:
            self._since_s = now_s
            self._say("waiting", dataset=dataset, marker=str(data / dataset / DOWN))
        elif not self._is_long and now_s - self._since_s > LONG_S:
            self._is_long = True
            hint = f"does boxlink sync --data {data} run? if it does, {ERROR} beside the marker or its log says why"
            self._say("waiting", dataset=dataset, seconds=round(now_s - self._since_s), hint=hint)
        return False


class HttpThread:
    """uvicorn in a thread of its own, so that signals and the order of the end stay with the main one."""

    def __init__(self, app: Traffic, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Longer than a proxy keeps its idle connections: the proxy closes first, and no request meets a close.
            timeout_keep_alive=75,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Returns when connections are accepted."""
        self._thread.start()
        while not self._server.is_ready.wait(0.1):
            if not self._thread.is_alive():
                raise Unavailable("the HTTP server did not start", hint="its last words are on stderr")

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def let_go(self) -> None:
        """Another accepts in this one's place: accept nothing more, and end each connection with its next answer."""
        self._server.let_go()

    def stop(self, seconds: float = DRAIN_S) -> None:
        """Finish what is in flight within so many seconds, cut what runs longer, and close."""
        self._server.config.timeout_graceful_shutdown = max(0, math.ceil(seconds))
        self._server.should_exit = True
        self._thread.join(timeout=max(0.0, seconds) + END_S)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.is_ready.set()

    def let_go(self) -> None:
        """Safe from another thread."""
        self._loop.call_soon_threadsafe(self._accept_no_more)

    def _accept_no_more(self) -> None:
        for server in self.servers:
            server.close()
        closing = (b"connection", b"close")
        self.config.encoded_headers.append(closing)  # of each answer; those of this second are made already
        self.server_state.default_headers = [*self.server_state.default_headers, closing]
