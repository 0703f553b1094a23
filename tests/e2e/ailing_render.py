"""A server that registers as ``boxlink render`` does and says that it is well, and whose tiles ail. A program of tests.

    ailing_render.py errors|slowness|proof --listen HOST:PORT

``errors``: each tile is a 500; ``slowness``: each takes as long as no tile should; ``proof``: as ``errors``, and it
names a tile as its probe.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import structlog

from render.register import Identity, Registrar
from synclib.clock import SystemClock
from synclib.core.names import proxy_key
from synclib.store.open import open_store

SLOW_S = 6.0


def main(ails: str, listen: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    host, _, port = listen.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), _handler(ails))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store, _ = open_store(os.environ["BOXLINK_STORE"], {})
    identity = Identity(proxy_key(host, server.server_port), os.environ["BOXLINK_NODE"], dataset="covers", lease_s=2)
    registrar = Registrar(
        store, identity, SystemClock(), structlog.get_logger(), probe=lambda: "/tiles/one" if ails == "proof" else ""
    )
    registrar.show_seq(1)
    registrar.settle()
    registrar.start()
    signal.sigwait({signal.SIGTERM})
    registrar.drain()
    registrar.remove()


def _handler(ails: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(200)

        def do_GET(self) -> None:
            is_tile = self.path.startswith("/tiles/")
            if is_tile and ails == "slowness":
                time.sleep(SLOW_S)
            self._answer(500 if is_tile and ails != "slowness" else 200)

        def _answer(self, status: int) -> None:
            body = b"" if self.command == "HEAD" else b"what ails answers\n"
            self.send_response(status)
            self.send_header("cache-control", "no-store")  # nothing of it is to outlive the upgrade
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[sys.argv.index("--listen") + 1])
