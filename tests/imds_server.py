"""The instance metadata service on the loopback, as AWS documents it: version 2, version 1 where that is allowed."""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import threading
from collections.abc import Iterator


class Imds:
    """``paths``: what it answers. ``requests``: (method, path) of each."""

    def __init__(self, *, user_data: bytes | None = None, has_v1: bool = False, has_v2: bool = True) -> None:
        self.paths: dict[str, bytes] = {"/latest/meta-data/placement/region": b"us-east-1"}
        if user_data is not None:
            self.paths["/latest/user-data"] = user_data
        self.has_v1, self.has_v2 = has_v1, has_v2
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.address = ""

    def give_role(self, access_key: str, secret_key: str, token: str) -> None:
        base = "/latest/meta-data/iam/security-credentials/"
        keys = {"AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": token, "Code": "Success"}
        self.paths |= {base: b"node", f"{base}node": json.dumps(keys).encode()}

    def answer(self, method: str, path: str, token: str, lifetime: str) -> tuple[int, bytes]:
        self.requests.append((method, path))
        if method == "PUT":
            if not self.has_v2 or path != "/latest/api/token":
                return 403, b""
            if not (lifetime.isdigit() and 1 <= int(lifetime) <= 21600):
                return 400, b""
            self.tokens.add(made := secrets.token_urlsafe(40))
            return 200, made.encode()
        if token not in self.tokens if token else not self.has_v1:
            return 401, b""
        return (200, self.paths[path]) if path in self.paths else (404, b"")


@contextlib.contextmanager
def serving(imds: Imds) -> Iterator[Imds]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = self.headers
            status, body = imds.answer(
                self.command,
                self.path,
                headers.get("X-aws-ec2-metadata-token", ""),
                headers.get("X-aws-ec2-metadata-token-ttl-seconds", ""),
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET  # noqa: N815 # http.server calls it so

        def log_message(self, *_: object) -> None:
            """Nothing: the test has the list."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        imds.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield imds
        finally:
            server.shutdown()
            thread.join()
