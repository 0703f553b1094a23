"""One client's connection: bytes to requests, one request at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import structlog

from proxy import reply
from proxy.core.body import ChunkedBody, SizedBody
from proxy.core.message import Refused, Request
from proxy.core.request import find_head, parse_request_head
from proxy.exchange import Exchange
from proxy.memo import Memo
from proxy.metrics import Counters
from proxy.reply import Reply
from proxy.responder import PIECE_BYTES, Responder
from synclib.clock import Clock
from synclib.errors import Corrupt

CONNECTIONS_MAX = 10_000
BODY_BYTES_MAX = 1 << 20
INPUT_BYTES_MAX = 64 << 10  # of requests that came before the one under way was answered
HEAD_S = 10.0  # for a request's head, from its first byte
BODY_S = 60.0  # for a request's body
IDLE_S = 75.0  # between an answer and the next request
WRITE_S = 60.0  # for a client to take what is buffered for it
LINGER_S = 2.0  # for a client to read why it was refused


class Shared:
    """What all connections of a proxy share; ``connections`` are those that are open."""

    def __init__(
        self,
        exchange: Exchange,
        memo: Memo,
        counters: Counters,
        clock: Clock,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.exchange = exchange
        self.memo = memo
        self.counters = counters
        self.clock = clock
        self.log = log
        self.connections: set[ClientConnection] = set()
        self.connections_max = CONNECTIONS_MAX
        self.is_stopping = False
        self.is_last = False  # each connection ends with its next answer

    def sweep(self) -> None:
        """Close the connections whose time is over."""
        for connection in list(self.connections):
            if connection.deadline < self.memo.now:
                connection.expire()


class ClientConnection(asyncio.Protocol):
    def __init__(self, shared: Shared) -> None:
        self.deadline = 0.0
        self._shared = shared
        self._memo = shared.memo
        self._blocks = shared.memo.blocks
        self._transport: asyncio.Transport | None = None
        self._responder: Responder | None = None
        self._write_lines: Callable[[Iterable[bytes]], None] | None = None
        self._task: asyncio.Task[None] | None = None  # answers the request under way
        self._buffer = bytearray()
        self._scanned = 0
        self._request: Request | None = None  # the one whose body is being read
        self._body: SizedBody | ChunkedBody | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_idle = False  # nothing buffered, nothing under way: the short cut may answer
        self._is_eof = False  # the client sends nothing more
        self._is_ending = False  # no further request is read

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        shared = self._shared
        shared.counters.connections += 1
        if len(shared.connections) >= shared.connections_max or shared.is_stopping:
            shared.counters.turned_away += 1
            self._is_ending = True
            transport.abort()
            return
        shared.connections.add(self)
        peer = transport.get_extra_info("peername")
        address = str(peer[0]).encode() if peer else b"unknown"
        self._responder = Responder(transport, address, shared.counters, lambda: self._allow(WRITE_S))
        self._write_lines = transport.writelines
        self._allow(HEAD_S)
        self._is_idle = True

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            cut = data.find(b"\r\n")
            lines = self._blocks.get(data[cut:])
            if lines is not None:
                stored = lines.get(data[:cut])
                memo = self._memo
                if stored is not None and (stored.tick == memo.tick or memo.refresh(stored)):
                    memo.hits += 1
                    stored.touches += 1
                    self.deadline = memo.idle_deadline
                    self._write_lines((stored.head, stored.body))  # type: ignore[misc]
                    return
        if self._is_ending:
            return
        if not self._buffer and self._request is None and self._is_idle:
            self._allow(HEAD_S)
        self._buffer += data
        if len(self._buffer) > INPUT_BYTES_MAX and self._is_busy and self._transport is not None:
            self._transport.pause_reading()
        self._advance()

    def eof_received(self) -> bool:
        """A client may shut its sending side and wait for the answers to what it sent."""
        self._is_eof = True
        self._advance()
        return True

    def pause_writing(self) -> None:
        self._is_idle = False
        if self._responder is not None:
            self._responder.pause()

    def resume_writing(self) -> None:
        if self._responder is not None:
            self._responder.resume()
        if self._task is None:
            self._allow(IDLE_S)
        else:
            self.deadline = math.inf
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.connections.discard(self)
        self._is_idle = False
        self._is_ending = True
        self._buffer.clear()
        self._parts.clear()
        if self._task is not None:
            self._task.cancel()

    # What the proxy calls.

    def expire(self) -> None:
        """Its time is over: a request that is only half here is told so, everything else is just closed."""
        is_half_sent = (self._buffer or self._request is not None) and not self._is_busy and not self._is_ending
        if is_half_sent:
            self._refuse(Refused(408, "request-timeout", "the request did not arrive in time"))
        elif self._transport is not None:
            self._transport.abort()

    def close_when_done(self) -> None:
        """Answer what is under way, then close."""
        if self._task is None and not self._is_ending:
            self._end()
        elif self._responder is not None:
            self._responder.closes = True

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # From bytes to requests.

    @property
    def _is_busy(self) -> bool:
        return self._task is not None or (self._responder is not None and self._responder.is_full)

    def _allow(self, seconds: float) -> None:
        self.deadline = self._shared.clock.monotonic() + seconds

    def _advance(self) -> None:
        """Take requests off the buffer until one is under way or more bytes are needed."""
        try:
            while not (self._is_busy or self._is_ending):
                if not (self._take_head() if self._request is None else self._take_body(self._request)):
                    break
        except Refused as refusal:
            self._refuse(refusal)
        is_free = not (self._is_busy or self._is_ending)
        self._is_idle = is_free and not (self._buffer or self._request is not None or self._is_eof)
        if is_free and self._is_eof:
            self._end()
        elif is_free and self._transport is not None:
            self._transport.resume_reading()

    def _take_head(self) -> bool:
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            del buffer[:2]  # RFC 9112 2.2: some clients send an empty line after a body
        end, self._scanned = find_head(buffer, self._scanned)
        if end < 0:
            return False
        head = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._scanned = 0
        request = parse_request_head(head[:-4])
        if not request.has_content:
            self._respond(request, head)
            return True
        if (request.length or 0) > BODY_BYTES_MAX:
            raise Refused(413, "body-too-large", f"a request's body may have {BODY_BYTES_MAX} bytes")
        self._request = request
        self._body = ChunkedBody() if request.is_chunked else SizedBody(request.length or 0)
        self._size = 0
        self._allow(BODY_S)
        if request.expects_continue and not buffer and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _take_body(self, request: Request) -> bool:
        assert self._body is not None
        if not self._buffer:
            return False
        data = bytes(self._buffer)
        self._buffer.clear()
        try:
            part = self._body.feed(data)
        except Corrupt as error:
            raise Refused(400, "body", error.message) from error
        self._parts.append(part)
        self._size += len(part)
        if self._size > BODY_BYTES_MAX:
            raise Refused(413, "body-too-large", f"a request's body may have {BODY_BYTES_MAX} bytes")
        if not self._body.is_complete:
            return False
        self._buffer += self._body.surplus
        content = b"".join(self._parts)
        self._parts.clear()
        self._request = self._body = None
        self._respond(replace(request, body=content), b"")
        return True

    # From requests to answers.

    def _respond(self, request: Request, head: bytes) -> None:
        responder = self._responder
        assert responder is not None
        responder.begin(request, is_last=self._shared.is_stopping or self._shared.is_last)
        answer = self._shared.exchange.answer_now(request, responder.address, head)
        if answer is not None and len(answer.body) <= PIECE_BYTES:
            responder.send_whole(answer)
            self._answered()
            return
        self.deadline = math.inf  # the backends' deadlines hold now; a client that stalls gets one of its own
        self._task = asyncio.get_running_loop().create_task(self._serve(request, answer, responder))

    async def _serve(self, request: Request, answer: Reply | None, responder: Responder) -> None:
        try:
            if answer is not None:
                await responder.reply(answer)
            else:
                await self._shared.exchange.serve(request, responder)
        except asyncio.CancelledError:
            responder.abort()
            raise
        except Exception:
            # A bug that one request met must not end the service of the others; it is told with its trace.
            self._shared.log.exception("request failed", target=request.target.decode("latin-1"))
            responder.abort()
        finally:
            self._task = None
            if not self._is_ending:
                self._answered()
                self._advance()

    def _answered(self) -> None:
        assert self._responder is not None
        self._allow(WRITE_S if self._responder.is_full else IDLE_S)
        if self._responder.closes or self._shared.is_stopping:
            self._end()

    def _refuse(self, refusal: Refused) -> None:
        """Say why a request is not acceptable, and read nothing more: what follows has no certain meaning."""
        self._shared.counters.refused[refusal.reason] += 1
        if self._responder is None or self._transport is None:
            return
        wall = self._shared.clock.wall_ns() / 1e9
        self._responder.closes = True
        self._responder.send_whole(
            reply.local(refusal.status, refusal.reason, refusal.message, method=b"GET", wall=wall)
        )
        self._is_ending = True
        self._buffer.clear()
        # Closing with bytes unread would reset the connection before the client has read the answer.
        self._allow(LINGER_S)
        self._transport.write_eof()

    def _end(self) -> None:
        """Close when everything is written."""
        self._is_ending = True
        self._is_idle = False
        self._buffer.clear()
        self._allow(WRITE_S)
        if self._transport is not None:
            self._transport.close()
