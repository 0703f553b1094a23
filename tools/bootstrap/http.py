"""One bounded HTTP request: no redirects, no proxies, a deadline for the whole of it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from .failure import AlreadyThere, Failure, NotThere, Temporary

SOCKET_S = 20.0
_PIECE_BYTES = 1 << 20


@contextmanager
def answer(
    method: str, url: str, headers: Mapping[str, str], what: str, deadline: float, body: bytes | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer with status 200. NotThere for 404, AlreadyThere for 412, Temporary for what may go away, Failure for a
    refusal; ``what`` names it, for a URL may hold what is nobody's business. ``deadline``: of time.monotonic(), for
    the whole of it."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise Failure(f"{what}: this is no URL")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    left_s = max(0.01, deadline - time.monotonic())
    connection = kind(parts.hostname, parts.port, timeout=min(SOCKET_S, left_s))
    late, response = None, None
    try:
        connection.connect()
        # Each byte that comes begins the socket's time anew: whoever sends one now and then would keep us for ever.
        late = threading.Timer(left_s, _cut, (connection.sock,))
        late.daemon = True
        late.start()
        target = parts.path or "/"
        connection.request(method, f"{target}?{parts.query}" if parts.query else target, body, dict(headers))
        response = connection.getresponse()
        if response.status == 404:
            raise NotThere(f"{what}: there is none")
        if response.status == 412:
            raise AlreadyThere(f"{what}: there is one")
        if response.status >= 500 or response.status == 429:
            raise Temporary(f"{what}: status {response.status}")
        if response.status != 200:
            raise Failure(f"{what}: refused with status {response.status}", "see rights, region and clock")
        yield response
    except (OSError, http.client.HTTPException) as error:
        raise Temporary(f"{what}: {type(error).__name__}: {error}") from None
    finally:
        if late is not None:
            late.cancel()
        if response is not None:
            response.close()
        connection.close()


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def pieces(response: http.client.HTTPResponse, bytes_max: int, deadline: float, what: str) -> Iterator[bytes]:
    """The body; Failure where it is longer than it may be, Temporary where it takes longer, or ends early."""
    got = 0
    while piece := response.read1(_PIECE_BYTES):
        got += len(piece)
        if got > bytes_max:
            raise Failure(f"{what}: it is longer than {bytes_max} bytes")
        if time.monotonic() > deadline:
            raise Temporary(f"{what}: it took too long")
        yield piece
    if time.monotonic() > deadline:
        raise Temporary(f"{what}: it took too long")
    if response.length:
        raise Temporary(f"{what}: it ended early")
