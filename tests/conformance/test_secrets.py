"""Keys of the store and of releases are where they were put and nowhere else: not in command lines, logs, state, caches
or the store, while a node, a server and a proxy run with them, and when a command fails."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synclib.core import zstd
from synclib.errors import BoxlinkError
from synclib.store.base import Store
from tests.conformance.conftest import BUCKET, open_s3
from tests.e2e.boxlink_process import end_session
from tests.pictures import small_wall
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import nodes, stop

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAMARKED0000000001",
    "AWS_SECRET_ACCESS_KEY": "marked/secret+key/of/the/store/00000000",
    "AWS_SESSION_TOKEN": "marked//token==of+the+session",
}
SECRETS = [KEYS["AWS_SECRET_ACCESS_KEY"].encode(), KEYS["AWS_SESSION_TOKEN"].encode()]


class Site:
    def __init__(self, place: Path, endpoint: str) -> None:
        self.place, self.url = place, f"s3://{BUCKET}/secrets"
        self.store: Store = open_s3(self.url, endpoint, is_wrapped=True)
        self.lines: set[bytes] = set()  # command lines that were seen
        self.said = b""
        self._environ = {
            "PATH": f"{Path(boxlink_command()[0]).parent}:{os.environ['PATH']}",
            "HOME": str(place / "home"),
            "BOXLINK_STORE": self.url,
            "BOXLINK_NODE": "operator",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            **KEYS,
        }

    def run(self, *words: object, code: int = 0) -> None:
        command = [*boxlink_command(), *map(str, words)]
        done = subprocess.run(command, env=self._environ, cwd=self.place, capture_output=True, check=False, timeout=120)
        self.said += done.stdout + done.stderr
        assert done.returncode == code, done.stderr.decode()

    @contextlib.contextmanager
    def running(self, *words: object) -> Iterator[None]:
        command = [*boxlink_command(), *map(str, words)]
        with (self.place / f"{words[0]}.out").open("wb") as out:
            process = subprocess.Popen(
                command, env=self._environ, cwd=self.place, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield
        finally:
            end_session(process)

    def look(self) -> None:
        """At the command lines of all processes here."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"boxlink" in line or bytes(self.place) in line:
                    self.lines.add(line)

    def keys(self, prefix: str) -> list[str]:
        return [info.key for info in self.store.list(prefix)]

    def objects(self) -> Iterator[bytes]:
        for key in self.keys(""):
            fetched = self.store.get(key, size_max=1 << 30)
            assert fetched is not None
            yield fetched.data
            with contextlib.suppress(BoxlinkError):
                yield zstd.decompress(fetched.data, zstd.content_size(fetched.data))

    def files(self) -> Iterator[bytes]:
        for path in self.place.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.name != "fleet.key":
                yield path.read_bytes()


def until(condition: Callable[[], object], act: Callable[[], None]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        act()
        time.sleep(0.1)


@pytest.fixture
def site(tmp_path: Path, moto_endpoint: str) -> Iterator[Site]:
    site = Site(tmp_path, moto_endpoint)
    try:
        yield site
    finally:
        for node in nodes(tmp_path / "nodes"):
            stop(node, 5)
        for key in site.keys(""):
            site.store.delete(key)


def test_no_secret_is_told(site: Site) -> None:
    for path, data in small_wall(5).items():
        file = site.place / "covers" / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    site.run("init")
    site.run("publish", "covers", "covers", "-v")
    site.run("release", "key", "fleet.key")
    (site.place / "programs/roles").mkdir(parents=True)
    role = 'role = "say"\n[[process]]\nname = "say"\nrun = ["boxlink", "sync", "--data", "{data}", "--poll", "0.5"]\n'
    (site.place / "programs/roles/say.toml").write_text(role)
    site.run("release", "publish", "fleet", "programs", "--key", "fleet.key")
    site.run("publish", "covers", "nowhere", "-v", code=2)
    site.run("ls", "covers", "nothing", "--json", code=10)
    with site.running("proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--allow", "127.0.0.0/8"):
        trust = ("--release", "fleet", "--trust", "fleet.key.pub")
        site.run("launch", "say", "--local", "nodes", *trust, "--seq", "covers=1")
        data = site.place / "nodes/say-1/data"
        (data / "covers").mkdir(parents=True, exist_ok=True)
        (data / "covers/synch.active").touch()
        until((data / "covers/synch.down").exists, site.look)
        with site.running("render", "--data", data, "--dataset", "covers", "--listen", "127.0.0.1:0"):
            until(lambda: site.keys("proxy/") and site.keys("log/say-1/") and site.keys("node/say-1"), site.look)
            site.run("status", "--fleet", "--json")
            site.run("logs", "say-1")
        site.run("launch", "say", "--local", "nodes", "--stop")
    private = (site.place / "fleet.key").read_bytes().splitlines()[1]
    assert len(site.lines) >= 4, "there was something to see"
    assert json.loads((site.place / "nodes/say-1/node.json").read_bytes())["node"] == "say-1"
    for where in (site.lines, [site.said], site.objects(), site.files()):
        for data_seen in where:
            assert not any(secret in data_seen for secret in [*SECRETS, private])
