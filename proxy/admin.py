"""The operator's side door: health, backends and metrics, on an address of its own."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from proxy.core.message import Refused, encode_response_head
from proxy.core.request import HEAD_BYTES_MAX, parse_request_head

_DEADLINE_S = 10.0

Page: TypeAlias = tuple[int, str, bytes]  # status, media type, body
# By path. What takes its time is awaited: others are answered meanwhile.
Pages: TypeAlias = dict[bytes, Callable[[], Page | Awaitable[Page]]]


def json_page(value: object, status: int = 200) -> Page:
    return status, "application/json", json.dumps(value).encode() + b"\n"


async def serve_admin(pages: Pages, host: str, port: int) -> asyncio.Server:
    """Answer GET and HEAD of the pages, one request per connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _answer(pages, head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            writer.transport.abort()

    return await asyncio.start_server(answer, host, port, limit=HEAD_BYTES_MAX)


async def _answer(pages: Pages, head: bytes) -> bytes:
    method, made = find_page(pages, head)
    return encode_page(method, await made if inspect.isawaitable(made) else made)


def find_page(pages: Pages, head: bytes) -> tuple[bytes, Page | Awaitable[Page]]:
    """(method, page) that a request's head, with the empty line at its end, asks for."""
    method = b"GET"
    try:
        request = parse_request_head(head[:-4])
        method = request.method
        page = pages.get(request.path)
        if method not in (b"GET", b"HEAD"):
            return method, json_page({"error": "only GET and HEAD"}, 405)
        if page is None:
            return method, json_page({"error": "no such page", "pages": [p.decode() for p in pages]}, 404)
        return method, page()
    except Refused as refusal:
        return method, json_page({"error": refusal.message}, refusal.status)


def encode_page(method: bytes, page: Page) -> bytes:
    """The whole answer."""
    status, kind, body = page
    fields = [
        (b"content-type", kind.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    encoded = encode_response_head(status, b"", fields) + b"\r\n"
    return encoded + (b"" if method == b"HEAD" else body)
