"""How long the bootstrap takes from its start to its first request of the store.

    python -m tools.bench.first_boot --rounds 21 --python /usr/bin/python3

Everything that it asks is on the loopback and answers at once: a metadata service for its user-data and keys, an S3
server that has nothing. Each round also starts the bare interpreter.
"""

from __future__ import annotations

import argparse
import http.server
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tools.bootstrap.build import build_bootstrap

_USER_DATA = b'store = "s3://bucket/prefix"\nrole = "render"\nrelease = "fleet"\n'
_KEYS = "/latest/meta-data/iam/security-credentials/"
_ANSWERS = {
    "/latest/api/token": b"token",
    "/latest/user-data": _USER_DATA,
    "/latest/meta-data/placement/region": b"us-east-1",
    _KEYS: b"node",
    f"{_KEYS}node": json.dumps({"AccessKeyId": "id", "SecretAccessKey": "key", "Token": "token"}).encode(),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    first_at: float = 0.0

    def do_GET(self) -> None:
        body = _ANSWERS.get(self.path)
        if body is None:
            _Handler.first_at = time.perf_counter()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    do_PUT = do_GET  # noqa: N815 # http.server calls it so

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        program = Path(scratch) / "bootstrap.pyz"
        program.write_bytes(build_bootstrap())
        address = f"http://127.0.0.1:{server.server_address[1]}"
        environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": address, "AWS_ENDPOINT_URL": address}
        boots, bare = [], []
        for _ in range(arguments.rounds):
            command = [arguments.python, "-I", str(program), "--root", f"{scratch}/root", "--trusted", scratch]
            started = time.perf_counter()
            subprocess.run(command, env=environ, capture_output=True, check=False)
            boots.append(_Handler.first_at - started)
            started = time.perf_counter()
            subprocess.run([arguments.python, "-I", "-c", "pass"], check=True)
            bare.append(time.perf_counter() - started)
        server.shutdown()
    for what, seconds in (("to the first request of the store", boots), ("the bare interpreter", bare)):
        print(f"{what}: {min(seconds):.3f} / {statistics.median(seconds):.3f} / {max(seconds):.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
