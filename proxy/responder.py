"""Answers written to one client's connection, framed for its version and at its pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.core.message import Request
from proxy.metrics import Counters
from proxy.reply import Reply

PIECE_BYTES = 64 << 10
WRITE_BYTES_HIGH = 64 << 10  # of an answer that the client has not taken yet


class Responder:
    """The ``Client`` of :mod:`proxy.exchange`: one answer per :meth:`begin`.

    ``closes`` tells, when the answer is finished, that the connection ends with it. ``is_full``: the client does not
    take what is written; what awaits :meth:`write` waits with it.
    """

    def __init__(
        self, transport: asyncio.Transport, address: bytes, counters: Counters, on_stall: Callable[[], None]
    ) -> None:
        self.address = address
        self.closes = False
        self.is_full = False
        self._transport = transport
        self._counters = counters
        self._on_stall = on_stall
        self._minor = 1
        self._is_chunked = False
        self._resumed: asyncio.Future[None] | None = None
        transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)

    def begin(self, request: Request, *, is_last: bool) -> None:
        """The request that is answered next; ``is_last``: the connection closes after it whatever it asks."""
        self._minor = request.minor
        self.closes = is_last or not request.is_persistent

    def send_whole(self, answer: Reply) -> None:
        """Write an answer that needs no waiting."""
        self._count(answer)
        self._transport.writelines((answer.head + self._connection(), answer.body))

    async def reply(self, answer: Reply) -> None:
        body = memoryview(answer.body)
        if len(body) <= PIECE_BYTES:
            self.send_whole(answer)
            return
        self._count(answer)
        self._transport.write(answer.head + self._connection())
        for offset in range(0, len(body), PIECE_BYTES):
            await self._send(body[offset : offset + PIECE_BYTES])

    def send_interim(self, head: bytes) -> None:
        if self._minor:
            self._transport.write(head)

    def start(self, answer: Reply, length: int | None) -> None:
        self._count(answer)
        self._is_chunked = length is None and self._minor == 1
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif self._is_chunked:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b""
            self.closes = True  # the end of the connection is the end of the body
        self._transport.write(answer.head + framing + self._connection())

    async def write(self, piece: bytes) -> None:
        if self._is_chunked:
            self._transport.writelines((b"%x\r\n" % len(piece), piece, b"\r\n"))
            await self._drain()
        else:
            await self._send(piece)

    def finish(self) -> None:
        if self._is_chunked:
            self._transport.write(b"0\r\n\r\n")

    def abort(self) -> None:
        self.closes = True
        self._transport.abort()

    def pause(self) -> None:
        self.is_full = True
        self._on_stall()

    def resume(self) -> None:
        self.is_full = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    async def _send(self, piece: bytes | memoryview) -> None:
        self._transport.write(piece)
        await self._drain()

    async def _drain(self) -> None:
        while self.is_full:
            self._on_stall()
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def _connection(self) -> bytes:
        if self.closes:
            return b"Connection: close\r\n\r\n"
        return b"\r\n" if self._minor else b"Connection: keep-alive\r\n\r\n"

    def _count(self, answer: Reply) -> None:
        self._counters.answers[answer.what] += 1
        self._counters.statuses[answer.status] += 1
