"""An S3 server some milliseconds away, over a real socket, before any store of ours: for processes.

It speaks what our clients ask for (GET with ranges, HEAD, PUT and DELETE with conditions, ListObjectsV2), believes
every signature, and can be told to lie. All requests are noted, so that round trips can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from synclib.errors import BoxlinkError, Conflict, Corrupt, Invalid, Missing, Unavailable
from synclib.store.base import Buffer, Store
from tools.bench.distance import NEAR, Distance, Fates, Line, Turnstile

BUCKET = "far"
URL = f"s3://{BUCKET}"
_PIECE_BYTES = 64 << 10
_BODY_BYTES_MAX = 256 << 20
_GET_BYTES_MAX = 1 << 32
_PAGE_KEYS = 1000
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 304: "Not Modified", 403: "Forbidden"}
_REASONS |= {404: "Not Found", 412: "Precondition Failed", 416: "Range", 500: "Error", 503: "Slow Down"}
# How a store may lie about the bytes of one kind of object, and only about those: for tests.
LIES = ("truncated", "flipped", "wrong range", "503", "stalled", "down")
_FLIPPED_EVERY = 4096  # bytes
_FAILURES: tuple[tuple[type[BoxlinkError], int, str], ...] = (
    (Missing, 404, "NoSuchKey"),
    (Conflict, 412, "PreconditionFailed"),
    (Corrupt, 416, "InvalidRange"),
    (Invalid, 403, "AccessDenied"),
    (Unavailable, 503, "SlowDown"),
)


@dataclass(frozen=True)
class Asked:
    """A request that was answered: when it came and when its last byte went (monotonic seconds)."""

    what: str  # method and key
    begin_s: float
    end_s: float
    body_bytes: int


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def key(self) -> str:
        """Without the bucket; empty for the bucket itself."""
        return self.path.lstrip("/").partition("/")[2]


@dataclass
class Answer:
    status: int
    body: Buffer = b""
    headers: dict[str, str] = field(default_factory=dict)


class FarServer:
    """Of one store. ``lie``: what it says from now on of objects whose keys have ``lies_about`` in them, empty for the
    truth. ``honours_conditions``: of writes, as a server has to. Any thread may set them."""

    def __init__(self, store: Store, distance: Distance = NEAR, seed: int = 1) -> None:
        self._store, self.distance = store, distance
        self._fates, self._line = Fates(distance, seed), Line(distance.bytes_per_s)
        self._turnstile = Turnstile(distance.requests_per_s)
        self.lie, self.lies_about = "", "/pack/"
        self.honours_conditions = True
        # With more than 0 it answers when nobody has asked anything for so long: what is asked at once is answered at
        # once, however long a busy machine takes to ask it.
        self.quiet_s, self._asked_at = 0.0, 0.0
        self.asked: list[Asked] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while (request := await _read_request(reader, writer)) is not None:
                if not await self._answer_one(request, writer):
                    break
        writer.close()

    async def _answer_one(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection lives on."""
        begin_s = self._asked_at = time.monotonic()
        lie = self.lie if self.lies_about in request.key or self.lie == "down" else ""
        if lie == "down":
            writer.transport.abort()
            return False
        if lie == "503" or not self._turnstile.admits(begin_s):
            await _send(writer, _failure(503, "SlowDown"), request.method)
            return True
        fate = self._fates.draw(f"{request.method} {request.key} {request.headers.get('range', '')}")
        answer = self._answer(_shifted(request) if lie == "wrong range" else request)
        if lie == "flipped" and answer.body:
            body = bytearray(answer.body)
            # In every chunk of it, and not only in one: those beside it would be right.
            for place in range(len(body) // 2 % _FLIPPED_EVERY, len(body), _FLIPPED_EVERY):
                body[place] ^= 1
            answer.body = bytes(body)
        if lie == "wrong range" and "range" in request.headers and answer.status == 206:
            answer.headers["Content-Range"] = _as_asked(request, answer.headers["Content-Range"])
        await asyncio.sleep(max(begin_s + fate.first_byte_s - time.monotonic(), 0))
        while (left_s := self._asked_at + self.quiet_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        while lie == "stalled" and self.lie == lie and not writer.is_closing():
            await asyncio.sleep(0.01)
        breaks_at = 0.5 if lie == "truncated" else fate.breaks_at
        body_bytes = len(answer.body) if request.method != "HEAD" else 0
        stop = body_bytes if breaks_at is None else int(body_bytes * breaks_at)
        await self._send_slowly(writer, answer, request.method, stop)
        self.asked.append(Asked(f"{request.method} {request.key}", begin_s, time.monotonic(), stop))
        if breaks_at is not None:
            writer.transport.abort() if lie != "truncated" else writer.close()
            return False
        return True

    async def _send_slowly(self, writer: asyncio.StreamWriter, answer: Answer, method: str, stop: int) -> None:
        writer.write(_head(answer))
        began_s, width = time.monotonic(), self.distance.connection_bytes_per_s
        body = memoryview(answer.body)
        for start in range(0, stop if method != "HEAD" else 0, _PIECE_BYTES):
            piece = body[start : min(start + _PIECE_BYTES, stop)]
            at = self._line.send(time.monotonic(), len(piece))
            if width:
                at = max(at, began_s + (start + len(piece)) / width)
            if (wait_s := at - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            writer.write(piece)
            await writer.drain()
        await writer.drain()

    def _answer(self, request: Request) -> Answer:
        try:
            match request.method:
                case "GET" | "HEAD" if not request.key:
                    return self._list(request)
                case "GET" | "HEAD":
                    return self._get(request)
                case "PUT" if request.key:
                    etag = self._store.put(
                        request.key,
                        request.body,
                        if_absent=self.honours_conditions and "if-none-match" in request.headers,
                        if_match=request.headers.get("if-match") if self.honours_conditions else None,
                    )
                    return Answer(200, headers={"ETag": etag})
                case "DELETE" if request.key:
                    self._store.delete(request.key, if_match=request.headers.get("if-match"))
                    return Answer(204)
        except BoxlinkError as error:
            status, code = next(((s, c) for kind, s, c in _FAILURES if isinstance(error, kind)), (500, "InternalError"))
            return _failure(status, code)
        return _failure(403, "AccessDenied")

    def _get(self, request: Request) -> Answer:
        wanted = request.headers.get("range", "").removeprefix("bytes=")
        first, dash, last = wanted.partition("-")
        if dash and first and last:
            start, stop = int(first), int(last) + 1
            (data,) = self._store.get_ranges(request.key, [(start, stop)])
            return _object(206, data, _etag_of(request.key), f"bytes {start}-{stop - 1}/{_GET_BYTES_MAX}")
        if dash and last:
            end = self._store.get_suffix(request.key, int(last))
            start = end.size - len(end.data)
            return _object(206, end.data, end.etag, f"bytes {start}-{end.size - 1}/{end.size}")
        known = request.headers.get("if-none-match")
        found = self._store.get(request.key, size_max=_GET_BYTES_MAX, if_none_match=known)
        return Answer(304, headers={"ETag": known or ""}) if found is None else _object(200, found.data, found.etag)

    def _list(self, request: Request) -> Answer:
        asked = {name: values[0] for name, values in request.query.items()}
        prefix = asked.get("prefix", "")
        after = asked.get("continuation-token", asked.get("start-after", ""))
        rows: list[str] = []
        last = ""
        for info in self._store.list(prefix, after=after):
            if len(rows) == _PAGE_KEYS:
                return _listing(rows, last)
            last = info.key
            rows.append(
                f"<Contents><Key>{escape(info.key)}</Key><LastModified>2026-11-24T08:00:00.000Z</LastModified>"
                f"<ETag>{escape(info.etag)}</ETag><Size>{info.size}</Size></Contents>"
            )
        return _listing(rows, "")


def _listing(rows: list[str], last: str) -> Answer:
    more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if last else ""
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{BUCKET}</Name>'
        f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>{str(bool(last)).lower()}</IsTruncated>{more}"
        f"{''.join(rows)}</ListBucketResult>"
    )
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def _object(status: int, data: Buffer, etag: str, content_range: str = "") -> Answer:
    headers = {"ETag": etag, "Last-Modified": "Tue, 24 Nov 2026 08:00:00 GMT", "Accept-Ranges": "bytes"}
    return Answer(status, data, {**headers, "Content-Range": content_range} if content_range else headers)


def _etag_of(key: str) -> str:
    """What is read by ranges is immutable: its name is its etag."""
    return f'"{key.rpartition("/")[2]}"'


def _failure(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())


def _range_of(request: Request) -> tuple[int, int]:
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    return int(first), int(last)


def _shifted(request: Request) -> Request:
    """The same request for as many bytes from elsewhere."""
    if "range" not in request.headers:
        return request
    first, last = _range_of(request)
    by = -min(first, 4096) or 1
    return Request(
        request.method, request.path, request.query, {**request.headers, "range": f"bytes={first + by}-{last + by}"}
    )


def _as_asked(request: Request, said: str) -> str:
    first, last = _range_of(request)
    return f"bytes {first}-{last}/{said.rpartition('/')[2]}"


def _head(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Error')}"]
    if answer.status not in (204, 304):
        lines.append(f"Content-Length: {len(answer.body)}")
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send(writer: asyncio.StreamWriter, answer: Answer, method: str) -> None:
    writer.write(_head(answer))
    if method != "HEAD":
        writer.write(answer.body)
    await writer.drain()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    line = (await reader.readline()).decode()
    if not line.strip():
        return None
    method, target, _ = line.split(" ", 2)
    headers: dict[str, str] = {}
    while (field_line := (await reader.readline()).decode()).strip():
        name, _, value = field_line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(headers.get("content-length", 0))
    if length > _BODY_BYTES_MAX:
        raise ValueError("a body is too large")
    path, _, query = target.partition("?")
    body = await reader.readexactly(length)
    return Request(method, unquote(path), parse_qs(query, keep_blank_values=True), headers, body)
