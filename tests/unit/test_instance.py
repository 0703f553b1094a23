"""The instance's own id and zone, from a metadata service that wants a token, lies, or is not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from synclib.errors import Unavailable
from tools.instance import instance_and_zone


class Service(HTTPServer):
    zone = b"eu-west-1b"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)


class Answering(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        self._say(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, b"the token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "the token":
            self._say(401, b"")
        elif self.path == "/latest/meta-data/instance-id":
            self._say(200, b"i-0123456789abcdef0")
        else:
            self._say(200, self.server.zone)

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()


def test_id_and_zone(service: Service) -> None:
    endpoint = f"http://127.0.0.1:{service.server_port}/"
    assert instance_and_zone(endpoint) == ("i-0123456789abcdef0", "eu-west-1b")
    service.zone = b"<html>a captive portal</html>"
    with pytest.raises(Unavailable, match="captive"):
        instance_and_zone(endpoint)


def test_on_another_machine(service: Service) -> None:
    service.server_close()
    with pytest.raises(Unavailable, match="does not answer"):
        instance_and_zone(f"http://127.0.0.1:{service.server_port}")
    with pytest.raises(Unavailable):
        instance_and_zone("no url")
