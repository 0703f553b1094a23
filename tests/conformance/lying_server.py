"""An S3 server that says what it is told to, on a raw socket: the answers that well-behaved servers never give."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Trickle:
    """An answer that comes a byte at a time, for as long as the client bears it."""

    def __init__(self, data: bytes, pause_s: float) -> None:
        self.data = data
        self.pause_s = pause_s
        self.sent = 0

    def send(self, connection: socket.socket) -> None:
        # Whatever the client sends is a sign of its leaving; none does while it waits for an answer.
        connection.settimeout(self.pause_s)
        for byte in self.data:
            connection.sendall(bytes([byte]))
            self.sent += 1
            with suppress(TimeoutError):
                connection.recv(1)
                return


# Given the request's first line and headers; returns the answer, or None never to answer.
Reply = bytes | Trickle | None
Answer = Callable[[str], Reply]


def answer(status: str, body: bytes = b"", *, length: int | None = None, headers: str = "") -> bytes:
    """The bytes of an HTTP answer; ``length`` is what it says its body has."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n"
        f'ETag: "e"\r\nLast-Modified: Tue, 24 Nov 2026 08:00:00 GMT\r\n{headers}Connection: close\r\n\r\n'
    )
    return head.encode() + body


def refusal(status: str, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())


@contextmanager
def lying(*answers: Answer | Reply) -> Iterator[tuple[str, list[str]]]:
    """Serve the answers in turn, the last one for ever; yields (endpoint, requests seen)."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: list[str] = []
    open_sockets: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as source:
            lines = []
            while (line := source.readline().decode()) not in ("\r\n", ""):
                lines.append(line)
            request = "".join(lines)
            if not request:
                return
            if "100-continue" in request.lower():
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")), 0)
            source.read(length)
            which = answers[min(len(requests), len(answers) - 1)]
            requests.append(request)
            reply = which(request) if callable(which) else which
            if isinstance(reply, Trickle):
                reply.send(connection)
            elif reply is not None:
                connection.sendall(reply)
                connection.close()

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(connection)
            try:
                serve(connection)
            except OSError:
                continue  # the client hung up: that is what some of these answers are for

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_sockets:
            connection.close()
        thread.join(timeout=10)
