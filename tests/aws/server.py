"""The stand-in's HTTP server on the loopback: raw requests in, raw answers out."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.aws.refusal import NoAnswer
from tests.aws.signature import RawRequest

Answer = Callable[[RawRequest], tuple[int, dict[str, str], bytes]]
BODY_BYTES_MAX = 1 << 20


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.failures: list[BaseException] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is none of ours; anything else is a mistake of the stand-in, which a client that tries
        again would hide."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.failures.append(error)


@contextmanager
def serving(answer: Answer, body_bytes_max: int = BODY_BYTES_MAX) -> Iterator[str]:
    """Yields the endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one write

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > body_bytes_max:
                self.send_error(413)
                return
            body = self.rfile.read(length)
            path, _, query = self.path.partition("?")
            request = RawRequest(self.command, unquote(path), query, dict(self.headers.items()), body)
            try:
                status, headers, data = answer(request)
            except NoAnswer:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Silent."""

    server = _Server(Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
        if server.failures:
            raise server.failures[0]
