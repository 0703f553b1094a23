"""A store some milliseconds away, on one machine: toxiproxy before an S3 server, built from source by Go, once."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from synclib.errors import Unavailable
from tools.go_install import install

MODULE = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.5.0"
_START_TIMEOUT_S = 10.0


@contextmanager
def delayed(endpoint: str, round_trip_ms: int) -> Iterator[str]:
    """The endpoint of a proxy before ``http://host:port`` that lets bytes wait half of ``round_trip_ms`` each way."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        api_port, port = one.getsockname()[1], other.getsockname()[1]
    command = [str(install(MODULE)), "-host", "127.0.0.1", "-port", str(api_port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        api = f"http://127.0.0.1:{api_port}"
        upstream = endpoint.removeprefix("http://")
        _post_when_up(f"{api}/proxies", {"name": "store", "listen": f"127.0.0.1:{port}", "upstream": upstream})
        for stream in ("upstream", "downstream"):
            toxic = {"type": "latency", "stream": stream, "attributes": {"latency": round_trip_ms // 2}}
            _post_when_up(f"{api}/proxies/store/toxics", toxic)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _post_when_up(url: str, body: object) -> None:
    """POST; Unavailable when nothing listens there for ten seconds."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=_START_TIMEOUT_S).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"toxiproxy did not start: {error}") from error
            time.sleep(0.05)
