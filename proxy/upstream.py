"""Connections to one backend: kept open, used for one request at a time, dropped at the first oddity."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar, cast

from proxy.core.message import ResponseHead
from proxy.core.response import ResponseReader
from synclib.errors import Corrupt, Unavailable

T = TypeVar("T")

CONNECT_S = 2.0
HEAD_S = 15.0  # from the request to the first byte of the body
BETWEEN_S = 15.0  # between two pieces of the body
IDLE_MAX = 32
IDLE_S = 60.0
READ_AHEAD_BYTES = 256 << 10


class TooSlow(Unavailable):
    """A backend took the request and did not answer in time."""


class StaleConnection(Unavailable):
    """The backend closed a kept connection as it was being used again: it saw no request, or answered none."""


class UpstreamConnection(asyncio.Protocol):
    """One TCP connection to a backend."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.was_used = False
        self.is_idle = False
        self.is_closed = False
        self._transport: asyncio.Transport | None = None
        self._received: deque[bytes] = deque()
        self._size = 0
        self._is_eof = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.is_idle:
            # Nothing was asked: whatever this is would be taken for the next answer.
            self.close()
            return
        self._received.append(data)
        self._size += len(data)
        if self._size > READ_AHEAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._is_eof = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._is_eof = True
        self._error = exc
        self._wake()

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def receive(self) -> bytes:
        """Some bytes, or b"" at the orderly end of the stream; Unavailable when the connection broke."""
        while not self._received:
            if self._error is not None:
                raise Unavailable(f"the connection to the backend broke: {self._error}")
            if self._is_eof:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._received.popleft()
        was_full = self._size > READ_AHEAD_BYTES
        self._size -= len(data)
        if was_full and self._size <= READ_AHEAD_BYTES and self._transport is not None and not self.is_closed:
            self._transport.resume_reading()
        return data

    @property
    def is_clean(self) -> bool:
        """Whether another request may be sent: open, and nothing received that nobody asked for."""
        return not (self._is_eof or self.is_closed or self._received)

    def close(self) -> None:
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Answer:
    """A backend's answer whose head and first bytes are here; the rest is read as it is wanted."""

    def __init__(self, connection: UpstreamConnection, reader: ResponseReader, first: bytes) -> None:
        assert reader.head is not None
        self.connection = connection
        self.reader = reader
        self.head: ResponseHead = reader.head
        self._first = first

    async def read(self) -> bytes:
        """The next bytes of the body; b"" when it is complete. Unavailable or Corrupt when it never will be."""
        if self._first:
            first, self._first = self._first, b""
            return first
        while not self.reader.is_complete:
            data = await _within(BETWEEN_S, self.connection.receive(), "the backend stopped within its answer")
            if not data:
                self.reader.feed_eof()
                return b""
            if body := self.reader.feed(data):
                return body
        return b""


class Pool:
    """The kept connections to one address."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: deque[UpstreamConnection] = deque()

    def take_idle(self) -> UpstreamConnection | None:
        """The connection used last, if one is still good."""
        while self._idle:
            connection = self._idle.pop()
            connection.is_idle = False
            if connection.is_clean:
                return connection
            connection.close()
        return None

    async def connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(UpstreamConnection, self._host, self._port)
        except TimeoutError as error:
            raise Unavailable(f"no connection to the backend within {CONNECT_S:g} s") from error
        except OSError as error:
            raise Unavailable(f"no connection to the backend: {error.strerror or error}") from error
        return connection

    def give_back(self, connection: UpstreamConnection, *, is_reusable: bool) -> None:
        """Keep a connection for the next request, or close it."""
        now = asyncio.get_running_loop().time()
        if is_reusable and connection.is_clean and len(self._idle) < IDLE_MAX:
            connection.was_used = connection.is_idle = True
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.close()
        while self._idle and now - self._idle[0].idle_since > IDLE_S:
            self._idle.popleft().close()

    def close_idle(self) -> None:
        while self._idle:
            self._idle.popleft().close()


async def converse(connection: UpstreamConnection, method: bytes, request: bytes) -> Answer:
    """Send a request and wait for the head and the body's first byte (or its end).

    StaleConnection, TooSlow, Unavailable or Corrupt when there is no such answer; the connection is then closed.
    """
    try:
        connection.send(request)
        return await _within(HEAD_S, _first_bytes(connection, method), "the backend did not answer in time")
    except BaseException:
        connection.close()
        raise


async def _first_bytes(connection: UpstreamConnection, method: bytes) -> Answer:
    reader = ResponseReader(method)
    has_answered = False
    while True:
        try:
            data = await connection.receive()
        except Unavailable:
            if connection.was_used and not has_answered:
                raise StaleConnection("the backend closed a kept connection") from None
            raise
        if not data:
            if connection.was_used and not has_answered:
                raise StaleConnection("the backend closed a kept connection")
            with contextlib.suppress(Corrupt):
                reader.feed_eof()
                return Answer(connection, reader, b"")
            raise Unavailable("the backend closed the connection without a whole answer")
        has_answered = True
        body = reader.feed(data)
        if reader.head is not None and (body or reader.is_complete):
            return Answer(connection, reader, body)


async def _within(seconds: float, awaitable: Awaitable[T], message: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError as error:
        raise TooSlow(message) from error
