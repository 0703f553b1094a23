"""A real S3 server on the loopback, for tests and benchmarks: versitygw on a directory."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synclib.errors import Unavailable
from tools.go_install import install

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
ACCESS_KEY, SECRET_KEY, REGION = "test", "testtest", "us-east-1"
_START_TIMEOUT_S = 30
_START_TRIES = 3


@dataclass(frozen=True)
class S3Server:
    """A running server and an empty bucket in it; ``directory`` is where it keeps the bucket's objects as files."""

    endpoint: str
    bucket: str
    directory: Path

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """The AWS variables that lead a client here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running(bucket: str = "boxlink", directory: Path | None = None) -> Iterator[S3Server]:
    """A server with an empty bucket; it stops, and its objects go, when the block ends."""
    program = install(MODULE)
    with tempfile.TemporaryDirectory(prefix="boxlink-s3-", dir=directory) as data:
        process, endpoint = _start(program, Path(data))
        try:
            server = S3Server(endpoint, bucket, Path(data) / bucket)
            _create_bucket(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(program: Path, data: Path) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(_START_TRIES):
        port = _free_port()
        process = subprocess.Popen(
            [program, "--port", f"127.0.0.1:{port}", "--health", "/health", "--quiet", "posix", str(data)],
            env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        endpoint = f"http://127.0.0.1:{port}"
        if _is_healthy(process, endpoint):
            return process, endpoint
        # Someone took the port between our asking for it and the server's.
        process.kill()
        process.wait()
    raise Unavailable("the S3 server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{endpoint}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def _create_bucket(server: S3Server) -> None:
    import boto3

    session = boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)
    session.client("s3", endpoint_url=server.endpoint).create_bucket(Bucket=server.bucket)
