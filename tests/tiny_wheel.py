"""A wheel of a few lines that brings one program: what a release holds, without building anything."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

_SERVE = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = "{version} {{}}".format(os.environ.get("BOXLINK_NODE")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if len(sys.argv) > 1 and ":" in sys.argv[-1]:
        host, _, port = sys.argv[-1].rpartition(":")
        http.server.ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
    print("{version}", *sys.argv[1:], flush=True)
"""


def write_wheel(directory: Path, version: str, program: str = "tool") -> Path:
    """``tool-<version>-py3-none-any.whl``: ``program HOST:PORT`` answers every request with its version and the node's
    name; with other words it prints them and ends."""
    info = f"tool-{version}.dist-info"
    files = {
        "tool.py": _SERVE.format(version=version),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tool\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{program} = tool:main\n",
    }
    record = "".join(f"{name},sha256={_hash(text)},{len(text.encode())}\n" for name, text in files.items())
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"tool-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return path


def _hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
