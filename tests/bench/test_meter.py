"""The benchmark's meter: every request is counted once, whatever pieces it comes in, and passes unchanged."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tools.bench.meter import Meter, metered, verb


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_PUT()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def meter() -> Iterator[Meter]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with metered(f"http://127.0.0.1:{server.server_port}") as found:
            yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("method", "url", "expected"),
    [
        ("GET", b"/bench/key", "GET"),
        ("GET", b"/bench/key?versionId=1", "GET"),
        ("GET", b"/bench?list-type=2&prefix=a%2F", "LIST"),
        ("GET", b"/bench/?list-type=2", "LIST"),
        ("POST", b"/bench/?delete=", "DELETES"),
        ("POST", b"/bench/key?uploads", "POST"),
        ("PUT", b"/bench/key", "PUT"),
    ],
)
def test_a_request_is_counted_as_what_it_does(method: str, url: bytes, expected: str) -> None:
    assert verb(method, url) == expected


def test_requests_in_pieces_and_bodies_that_look_like_requests_are_counted_right(meter: Meter) -> None:
    host, _, port = meter.endpoint.removeprefix("http://").partition(":")
    body = b"GET /bench/other HTTP/1.1\r\nHost: x\r\n\r\n"
    put = b"PUT /bench/key HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /bench/?list-type=2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(put), 7):
            connection.sendall(put[start : start + 7])
            time.sleep(0.001)  # each goes as a piece of its own
        connection.sendall(get)
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 2:
            answer += connection.recv(65536)
    assert body in answer
    traffic = meter.read()
    assert traffic.requests == {"PUT": 1, "LIST": 1}
    assert traffic.up_bytes == len(put) + len(get)
    assert traffic.down_bytes >= len(answer)
    meter.reset()
    assert meter.read().count == 0
