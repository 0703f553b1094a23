"""A node whose machine was ended starts while its store is away, or accepts and says nothing: what is here is served at
once, the rest is an error within the deadline, and all is well when the store is back."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.store.file import FileStore
from tests.e2e.boxlink_process import Machine
from tests.mount.crash.hooks import Hooks
from tests.mount.test_lazy_sync import Site
from tools.bench.far_process import environment, serving
from tools.bench.far_server import URL, FarServer

UNREAD = "deep/er/unread"
READ_S = 60


class FarSite(Site):
    """A node of a store that can go away; deadlines of its workers are short."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        (self.source / UNREAD).parent.mkdir(parents=True)
        (self.source / UNREAD).write_bytes(random.Random(5).randbytes(3_000_000))
        self.machine.run("publish", "covers", self.source)
        self.server = FarServer(FileStore(str(place / "store"), SystemClock(), SystemEntropy()))
        self.server.lies_about = ""

    def serve(self, endpoint: str) -> None:
        self.machine = Machine(self.machine.place, URL)
        self.machine.environment.update(environment(endpoint))
        Hooks(self.machine.place / "hooks", self.machine.environment)

    def read_all_but_one(self) -> None:
        words = ["-x", "synch.*", "-x", os.path.basename(UNREAD)]
        done = subprocess.run(
            ["diff", "-r", *words, self.source, self.covers], capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def read_one(self) -> bool:
        """Whether it is right; else it is an error, and what was read until then is right."""
        done = subprocess.run(["cat", self.covers / UNREAD], capture_output=True, check=False, timeout=READ_S)
        right = (self.source / UNREAD).read_bytes()
        assert right.startswith(done.stdout)
        assert (done.returncode == 0) == (done.stdout == right)
        return done.returncode == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FarSite]:
    found = FarSite(tmp_path)
    with serving(found.server) as endpoint:
        found.serve(endpoint)
        try:
            yield found
        finally:
            found.close()


@pytest.mark.parametrize(("lie", "mode"), [("down", "erofs"), ("stalled", "erofs"), ("stalled", "fuse")])
def test_what_is_here_is_served_and_the_rest_is_an_error(site: FarSite, lie: str, mode: str) -> None:
    words = ("--lazy", "--mode", mode)
    (site.covers / "synch.active").touch()
    site.start(*words)
    site.wait(lambda: site.down()["seq"] == 2)
    site.read_all_but_one()
    site.stop()
    site.kill_mounts()
    assert [path.name for path in site.covers.iterdir()] == ["synch.active"]
    site.server.lie = lie
    site.start(*words)
    site.wait(lambda: site.down()["seq"] == 2)
    site.read_all_but_one()
    assert not site.read_one()
    site.server.lie = ""
    site.wait(site.read_one)
    site.assert_same()
