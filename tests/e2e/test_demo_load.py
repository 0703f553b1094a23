"""The load of the upgrade's demo misses nothing, and what it counts is what the demo ends with."""

from __future__ import annotations

import argparse
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.demo import upgrade
from tools.demo.load import Load
from tools.demo.processes import Demo

EXPECTED = {f"/{number}": b"tile %d" % number for number in range(5)}


@contextmanager
def serving(fault: str) -> Iterator[int]:
    """A server that is at fault now and then, from its tenth request on."""
    asked = [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked[0] += 1
            is_bad = asked[0] > 10 and asked[0] % 7 == 0
            data = EXPECTED[self.path.partition("?")[0]]
            if is_bad and fault == "hangs up":
                self.close_connection = True
                return
            data = b"wrong" if is_bad and fault == "wrong bytes" else data
            self.send_response(503 if is_bad and fault == "503" else 200)
            self.send_header("Content-Length", str(len(data) + (3 if is_bad and fault == "breaks off" else 0)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = is_bad and fault == "breaks off"

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.mark.parametrize("fault", ["", "503", "wrong bytes", "hangs up", "breaks off"])
def test_what_is_lost_is_counted_and_ends_the_demo_with_1(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fault) as port:
        load = Load(port, EXPECTED)
        load.start()
        deadline = time.monotonic() + 60
        while load.answered < 100 or (fault and not (load.failed or load.wrong)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        load.stop()
    assert (load.failed > 0, load.wrong > 0) == (fault not in ("", "wrong bytes"), fault == "wrong bytes")
    monkeypatch.setattr(upgrade.Upgrades, "run", lambda self: upgrade.check_load(load))
    code = upgrade.run(
        Demo(tmp_path / "demo"), argparse.Namespace(exit=True, faults=False, port=0, count=1, requests=1)
    )
    assert code == (1 if fault else 0)
