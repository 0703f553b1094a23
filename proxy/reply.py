"""Whole answers: from what is stored, or the proxy's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus

from proxy.cache import Stored
from proxy.core import cache_status, ranges
from proxy.core.dates import format_date
from proxy.core.message import Fields, Request, encode_response_head
from proxy.core.validate import is_not_modified, not_modified_fields
from proxy.dispatch import NoBackend
from proxy.upstream import TooSlow
from synclib.errors import BoxlinkError, Corrupt

RETRY_AFTER_S = 2


@dataclass(frozen=True, slots=True)
class Reply:
    """``head`` holds all fields but Connection, without the empty line; ``what`` counts it in the metrics."""

    status: int
    head: bytes
    body: bytes | memoryview
    what: str


def from_stored(request: Request, stored: Stored, *, age: float | None, wall: float, cache: bytes, what: str) -> Reply:
    """A stored answer for one request: whole, 304 to its conditions, or the range that it asks for.

    ``age``: seconds, or None for an answer that the origin made for this very request; ``cache``: the Cache-Status.
    """
    ours = (b"" if age is None else b"Age: %d\r\n" % age) + b"Cache-Status: %b\r\n" % cache
    body: bytes | memoryview = stored.body
    if stored.status == 200:
        if is_not_modified(request, stored.fields, wall):
            head = encode_response_head(304, b"Not Modified", not_modified_fields(stored.fields))
            return Reply(304, head + ours, b"", what)
        span = _span(request, stored, wall)
        if span is not None and not span.is_satisfiable:
            fields = Fields(((b"content-range", span.content_range), (b"date", format_date(wall))))
            head = encode_response_head(416, b"Range Not Satisfiable", fields)
            return Reply(416, head + b"Content-Length: 0\r\n" + ours, b"", what)
        if span is not None:
            body = memoryview(stored.body)[span.start : span.stop]
            fields = stored.fields.plus((b"content-range", span.content_range))
            head = encode_response_head(206, b"Partial Content", fields)
            return Reply(206, head + b"Content-Length: %d\r\n" % len(body) + ours, body, what)
    return Reply(stored.status, stored.static_head + ours, b"" if request.method == b"HEAD" else body, what)


def _span(request: Request, stored: Stored, wall: float) -> ranges.Span | None:
    wanted = request.fields.get(b"range")
    if wanted is None or request.method != b"GET":
        return None
    if not ranges.if_range_holds(request.fields.get(b"if-range"), stored.fields, wall):
        return None
    return ranges.select(wanted, len(stored.body))


def failure(error: BoxlinkError) -> tuple[int, str]:
    """(status, reason) of a failure to get any answer from a backend."""
    if isinstance(error, NoBackend):
        return 503, error.reason
    if isinstance(error, TooSlow):
        return 504, "too-slow"
    return (502, "bad-answer") if isinstance(error, Corrupt) else (503, "failed")


def local(status: int, reason: str, message: str, *, method: bytes, wall: float) -> Reply:
    """The proxy's own answer, which nobody keeps; the body says why in JSON."""
    phrase = HTTPStatus(status).phrase
    body = json.dumps({"error": {"status": status, "reason": reason, "message": message}}).encode() + b"\n"
    fields = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"date", format_date(wall)),
        (b"content-length", b"%d" % len(body)),
        (b"cache-status", cache_status.local(reason.encode())),
    ]
    if status == 503:
        fields.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    head = encode_response_head(status, phrase.encode(), fields)
    return Reply(status, head, b"" if method == b"HEAD" else body, "local")
