"""Deadlines of the bootstrap's requests, against a server that sends a byte now and then, and never stops in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tools.bootstrap.failure import Temporary
from tools.bootstrap.http import answer, pieces
from tools.bootstrap.imds import Metadata

STEP_S, BYTES = 0.02, 1000  # it would come to its end


class Dripping:
    """``first`` is sent at once, then one byte after the other, then ``last``."""

    def __init__(self, first: bytes, dripped: bytes, last: bytes = b"") -> None:
        self._said = first, dripped, last
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.is_cut = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        first, dripped, last = self._said
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                try:
                    connection.sendall(first)
                    for byte in dripped:
                        time.sleep(STEP_S)
                        connection.sendall(bytes([byte]))
                    connection.sendall(last)
                except OSError:
                    self.is_cut.set()

    def close(self) -> None:
        self._listener.close()


HEAD = b"HTTP/1.1 200 OK\r\n"
SERVERS = {
    "body": (HEAD + b"Content-Length: %d\r\n\r\n" % BYTES, b"x" * BYTES, b""),
    "body without a length": (HEAD + b"Connection: close\r\n\r\n", b"x" * BYTES, b""),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * (BYTES // 6), b"0\r\n\r\n"),
    "headers": (HEAD, b"X-Much: %s\r\n" % (b"x" * BYTES), b"Content-Length: 0\r\n\r\n"),
}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Dripping]:
    found = Dripping(*SERVERS[request.param])
    yield found
    found.close()


def test_a_drip_ends_at_the_deadline(server: Dripping) -> None:
    deadline = time.monotonic() + 0.5
    with pytest.raises(Temporary), answer("GET", server.url, {}, "it", deadline) as response:
        for _ in pieces(response, BYTES, deadline, "it"):
            pass
    assert server.is_cut.wait(30), "it was still sending"


def test_what_is_slow_and_in_time_is_taken() -> None:
    found = Dripping(HEAD + b"Content-Length: 5\r\n\r\n", b"x" * 5)
    deadline = time.monotonic() + 60
    with answer("GET", found.url, {}, "it", deadline) as response:
        assert b"".join(pieces(response, 5, deadline, "it")) == b"x" * 5
    found.close()


def test_the_metadata_service_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Dripping(*SERVERS["headers"])
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", found.url.rstrip("/"))
    monkeypatch.setattr("tools.bootstrap.imds._TIMEOUT_S", 0.2)
    monkeypatch.setattr("tools.bootstrap.imds._TRIES", 1)
    with pytest.raises(Temporary):
        Metadata(is_v1=True).region()
    assert found.is_cut.wait(30)
    found.close()
