"""A proxy on loopback with real sockets, origins whose answers a test decides, and a client that hides nothing."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvloop

from proxy.core.networks import parse_networks
from proxy.server import ProxyServer, ProxySettings
from synclib.clock import ManualClock, SeededEntropy
from synclib.core.names import proxy_key
from synclib.store.memory import MemoryStore

DEADLINE_S = 20.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in asyncio's loop and in uvloop's; it fails when it hangs."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await test(*args, **kwargs)

        for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(bounded())

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the test's own deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


@dataclass
class Message:
    """A request as an origin saw it, or a response as a client did; names in lower case."""

    line: str
    pairs: list[tuple[str, str]]
    body: bytes = b""

    @property
    def status(self) -> int:
        return int(self.line.split(" ")[1])

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    def __getitem__(self, name: str) -> str | None:
        values = [value for key, value in self.pairs if key == name]
        return ", ".join(values) if values else None


def parse_head(head: bytes) -> Message:
    line, *rest = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value.strip()) for name, _, value in (item.partition(":") for item in rest if item)]
    return Message(line, pairs)


def answer(body: bytes = b"", status: int = 200, **fields: str) -> bytes:
    """An origin's answer with Content-Length; ``cache_control="x"`` is the field Cache-Control."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


Handler = Callable[[Message], Awaitable[bytes] | bytes]


class Origin:
    """Answers each request with the bytes its handler gives; b"" at their end means: and close."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Message] = []
        self.closes = False
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                request = parse_head(await reader.readuntil(b"\r\n\r\n"))
                request.body = await reader.readexactly(int(request["content-length"] or 0))
                self.requests.append(request)
                given = self.handler(request)
                data = given if isinstance(given, bytes) else await given
                writer.write(data)
                await writer.drain()
                if self.closes or not data:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Client:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, method: str = "GET") -> Message:
        """The next response. asyncio.IncompleteReadError when it breaks off."""
        response = parse_head(await self.reader.readuntil(b"\r\n\r\n"))
        if method == "HEAD" or response.status in (204, 304) or response.status < 200:
            return response
        if response["transfer-encoding"] == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                response.body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif (length := response["content-length"]) is not None:
            response.body = await self.reader.readexactly(int(length))
        else:
            response.body = await self.reader.read()
        return response

    async def get(self, target: str, *, method: str = "GET", **fields: str) -> Message:
        self.send(request(target, method=method, **fields))
        return await self.receive(method)

    def close(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Go away in a way that the proxy sees at once (a plain close looks like a client that only stops sending)."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


def request(target: str, *, method: str = "GET", body: bytes = b"", **fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: covers.example"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass
class World:
    """A proxy, its store and its origins; time stands still until :meth:`pass_time`."""

    server: ProxyServer
    store: MemoryStore
    clock: ManualClock
    logged: list[Any] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)

    async def backend(self, handler: Handler, **registration: Any) -> Origin:
        """Start an origin and register it."""
        origin = Origin(handler)
        port = await origin.start()
        self.origins[proxy_key("127.0.0.1", port)] = origin
        self.register(origin, **registration)
        return origin

    def key(self, origin: Origin) -> str:
        return next(key for key, known in self.origins.items() if known is origin)

    def register(self, origin: Origin, **registration: Any) -> None:
        self.put(self.key(origin), registration)

    def put(self, key: str, registration: dict[str, Any]) -> None:
        self.store.put(key, json.dumps({"v": 1, "handles": ["/*"], **registration}).encode())
        self.poll()

    def withdraw(self, origin: Origin) -> None:
        self.store.delete(self.key(origin))
        self.poll()

    def poll(self) -> None:
        self.server.apply(self.server.registry.poll())

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.server.tick()

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection(*self.server.address, limit=1 << 26))
        self.clients.append(client)
        return client

    async def get(self, target: str, *, method: str = "GET", **fields: str) -> Message:
        """One request on a connection of its own."""
        client = await self.client()
        try:
            return await client.get(target, method=method, **fields)
        finally:
            client.close()

    async def send(self, data: bytes) -> bytes:
        """Everything the proxy answers to some bytes until it closes or has answered one message."""
        client = await self.client()
        client.send(data)
        return await client.reader.read()


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    store, clock, logged = MemoryStore(), ManualClock(), []

    def keep(_logger: object, _method: str, event: dict[str, Any]) -> str:
        logged.append(event)
        return ""

    log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[structlog.processors.add_log_level, keep])
    plain = {"listen": ("127.0.0.1", 0), "networks": parse_networks(["127.0.0.0/8"], ""), "poll_s": 3600.0}
    server = ProxyServer(ProxySettings(**{**plain, **settings}), store, clock, SeededEntropy(7), log)
    await server.start()
    running = World(server, store, clock, logged)
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        await server.stop(0)
        for origin in running.origins.values():
            await origin.stop()
    problems = [event for event in logged if event["level"] == "error"]
    assert not problems, problems
