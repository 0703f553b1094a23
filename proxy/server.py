"""The proxy put together: listener, registry, probes and the admin address, and their beginning and end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass

import structlog

from proxy.admin import Pages, json_page, serve_admin
from proxy.backends import Backends
from proxy.cache import Cache
from proxy.collapse import Fetches
from proxy.connection import IDLE_S, ClientConnection, Shared
from proxy.core.networks import Network
from proxy.dispatch import Dispatcher
from proxy.exchange import Exchange
from proxy.memo import Memo
from proxy.metrics import Counters, ProxyCollector, exposition
from proxy.probe import probe_for_ever, prove_for_ever
from proxy.registry import Poller, Registry
from synclib.clock import Clock, Entropy
from synclib.core.drain import DRAIN_S
from synclib.core.registration import Registration
from synclib.errors import BoxlinkError, Invalid
from synclib.store.base import Store

CACHE_BYTES = 256 << 20
POLL_S = 2.0
FIRST_POLL_S = 5.0
LET_GO_S = 3.0
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Plain data; addresses are (host, port), port 0 lets the system choose."""

    listen: tuple[str, int]
    networks: list[Network]
    admin: tuple[str, int] | None = None
    poll_s: float = POLL_S
    cache_bytes: int = CACHE_BYTES
    listener: socket.socket | None = None  # what to accept from, where it is bound already


class ProxyServer:
    """One proxy in one event loop. After :meth:`start`, ``address`` and ``admin_address`` are what it listens on.

    ``crashed`` is set when a part of it ended by a bug, ``crash``.
    """

    def __init__(
        self,
        settings: ProxySettings,
        store: Store,
        clock: Clock,
        entropy: Entropy,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.address: tuple[str, int] = settings.listen
        self.admin_address: tuple[str, int] | None = None
        self.counters = Counters()
        self.memo = Memo()
        self.cache = Cache(settings.cache_bytes)
        self.backends = Backends(clock, log)
        self._settings = settings
        self._clock = clock
        self._log = log
        via = b"boxlink-" + entropy.token(4).hex().encode()
        dispatcher = Dispatcher(self.backends, clock, via, self.counters)
        self.fetches = Fetches(dispatcher, self.cache, clock)
        exchange = Exchange(self.cache, self.fetches, self.memo, clock, self.counters, via)
        self.shared = Shared(exchange, self.memo, self.counters, clock, log)
        self.collector = ProxyCollector(
            self.counters, self.memo, self.cache, self.backends, lambda: len(self.shared.connections)
        )
        self.registry = Registry(store, settings.networks, clock, self.counters, log)
        self._poller = Poller(
            self.registry, settings.poll_s, entropy, self._on_standing, self._on_failure, self._on_crash
        )
        self.crashed = asyncio.Event()
        self.crash: BaseException | None = None
        self._first_poll = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen, once the store was read or could not be. Invalid when an address cannot be listened on."""
        self._loop = asyncio.get_running_loop()
        self.tick()
        self._poller.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first_poll.wait(), FIRST_POLL_S)
        try:
            server = await self._listening()
            self._servers.append(server)
            self.address = _bound(server)
            if self._settings.admin is not None:
                admin = await serve_admin(self._pages(), *self._settings.admin)
                self._servers.append(admin)
                self.admin_address = _bound(admin)
        except OSError as error:
            await self.stop(0)
            raise Invalid(f"cannot listen: {error.strerror or error}", hint="choose another --listen") from error
        for endless in (self._tick_for_ever(), probe_for_ever(self.backends), prove_for_ever(self.backends)):
            task = self._loop.create_task(endless)
            task.add_done_callback(self._on_end)
            self._tasks.append(task)

    async def _listening(self) -> asyncio.Server:
        assert self._loop is not None

        def made() -> ClientConnection:
            return ClientConnection(self.shared)

        if self._settings.listener is not None:
            return await self._loop.create_server(made, sock=self._settings.listener, backlog=_BACKLOG)
        return await self._loop.create_server(made, *self._settings.listen, backlog=_BACKLOG)

    async def let_go(self) -> None:
        """Another accepts in this one's place: accept nothing more, and say with each answer that its connection ends,
        until clients have had the time to hear it."""
        self.shared.is_last = self.memo.is_off = True
        self.memo.clear()
        for server in self._servers[:1]:
            server.close()
        deadline = asyncio.get_running_loop().time() + LET_GO_S
        while self.shared.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    async def stop(self, grace_s: float = DRAIN_S) -> None:
        """Accept nothing more, let what is under way end within ``grace_s`` seconds, then break it off."""
        self._poller.stop()
        self.shared.is_stopping = True
        self.memo.clear()
        for server in self._servers:
            server.close()
        for connection in list(self.shared.connections):
            connection.close_when_done()
        deadline = asyncio.get_running_loop().time() + grace_s
        while self.shared.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.shared.connections):
            connection.abort()
        self.fetches.cancel_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in self.backends:
            backend.pool.close_idle()

    def tick(self) -> None:
        """Once a second: ages move on, connections whose time is over are closed."""
        self.memo.tick += 1
        self.memo.now = self._clock.monotonic()
        self.memo.idle_deadline = self.memo.now + IDLE_S
        self.shared.sweep()

    def apply(self, standing: dict[str, Registration]) -> None:
        """Take over what a poll found."""
        if not self.backends.is_store_readable:
            self._log.info("the store can be read again")
        self.backends.is_store_readable = True
        self.backends.apply(standing)
        self._first_poll.set()

    def note_outage(self, error: BoxlinkError) -> None:
        """A poll failed: the routes stay as they are, and backends are probed from now on."""
        if self.backends.is_store_readable:
            self._log.warning("the store cannot be read", kind=error.kind, message=error.message)
        self.backends.is_store_readable = False
        self._first_poll.set()

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.tick()

    def _on_standing(self, standing: dict[str, Registration]) -> None:
        self._call(self.apply, standing)

    def _on_failure(self, error: BoxlinkError) -> None:
        self._call(self.note_outage, error)

    def _on_crash(self, error: BaseException) -> None:
        self._call(self._note_crash, error)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._note_crash(error)

    def _note_crash(self, error: BaseException) -> None:
        """A part of the proxy ended by a bug. Who runs it should end it: half a proxy serves old routes for ever."""
        self.crash = error
        self.crashed.set()

    def _call(self, function: object, argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(function, argument)  # type: ignore[arg-type]

    def _pages(self) -> Pages:
        return {
            b"/healthz": lambda: json_page(
                {
                    "status": "stopping" if self.shared.is_stopping else "ok",
                    "backends": sum(backend.takes_requests for backend in self.backends),
                    "store_readable": self.backends.is_store_readable,
                },
                503 if self.shared.is_stopping else 200,
            ),
            b"/backends": lambda: json_page([backend.as_dict() for backend in self.backends]),
            b"/metrics": lambda: (200, "text/plain; version=0.0.4; charset=utf-8", exposition(self.collector)),
        }


def _bound(server: asyncio.Server) -> tuple[str, int]:
    sockets: tuple[socket.socket, ...] = server.sockets
    host, port = sockets[0].getsockname()[:2]
    return host, port
