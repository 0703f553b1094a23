"""A mount whose store is a far server that can be slow, or lie, and whose processes can be killed at every step."""

from __future__ import annotations

import contextlib
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
from tools.bench.distance import NEAR, Distance
from tools.bench.far_process import environment, serving
from tools.bench.far_server import URL, FarServer

FILES, FILE_BYTES = 120, 300_000
_APART = 5  # what the kernel reads ahead of one file is not another one's
READ_S = 60.0  # no read takes longer: a worker's deadline is 3 s, a keeper gives a worker 30 s to come to life
WEATHERS = {"": NEAR, "slow": Distance(0.035, 0.2, bytes_per_s=20_000_000)}


class Crashing:
    """One mount, and files of it that nobody has read yet."""

    def __init__(self, place: Path) -> None:
        self.place, self.source, self.target = place, place / "source", place / "mount"
        self.source.mkdir(parents=True)
        self.target.mkdir()
        chance = random.Random(4)
        for number in range(FILES):
            (self.source / f"{number:03}").write_bytes(chance.randbytes(FILE_BYTES))
        publisher = Machine(place)
        publisher.run("init")
        publisher.run("publish", "covers", self.source)
        self.server = FarServer(FileStore(str(place / "store"), SystemClock(), SystemEntropy()))
        self._stack = contextlib.ExitStack()
        endpoint = self._stack.enter_context(serving(self.server))
        self.machine = Machine(place, URL)
        self.machine.environment.update(environment(endpoint))
        self.hooks = Hooks(place / "hooks", self.machine.environment)
        self._unread: list[str] = []

    def close(self) -> None:
        self.be("")
        with contextlib.suppress(AssertionError):
            self.machine.run("umount", self.target, "--force")
        self._stack.close()

    def be(self, weather: str) -> None:
        """What the store is like from now on: ``slow``, a lie, or nothing of it."""
        self.server.distance = WEATHERS.get(weather, NEAR)
        self.server.lie = "" if weather in WEATHERS else weather

    def mount(self, *words: str) -> None:
        self.machine.json("mount", "covers", self.target, "--no-hydrate", *words)

    def forget(self) -> None:
        """All that the node has: its cache; the kernel's memory."""
        self.machine.run("cache", "evict", self.target)
        drop_page_cache()
        self._unread = []

    def mend(self) -> None:
        """As an operator would, whose keeper is gone; where it is not, nothing."""
        rows = self.machine.json("status")["mounts"]
        if rows and rows[0]["state"] == "serving":
            return
        if rows:
            self.machine.run("umount", self.target, "--force")
        self.mount()

    def unread(self) -> str:
        """A file of which nothing is here but perhaps what was read ahead."""
        if not self._unread:
            self.forget()
            self._unread = [f"{number:03}" for number in range(0, FILES, _APART)]
        return self._unread.pop()

    def start_reading(self, name: str) -> subprocess.Popen[bytes]:
        """The kernel asks for what it has not read; :func:`drop_page_cache` makes it ask for all, of everyone."""
        return subprocess.Popen(["cat", self.target / name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def right(self, name: str) -> bytes:
        return (self.source / name).read_bytes()

    def finish(self, name: str, reader: subprocess.Popen[bytes]) -> bool:
        """Whether a reader got the whole file; else it got an error. Whatever it got is right, and it does not hang."""
        try:
            out, _ = reader.communicate(timeout=READ_S)
        finally:
            reader.kill()
        right = self.right(name)
        assert right.startswith(out), "wrong bytes were read"
        is_whole = reader.returncode == 0
        assert (len(out) == len(right)) == is_whole, "it ended early and without an error"
        return is_whole

    def read(self, name: str) -> bool:
        return self.finish(name, self.start_reading(name))

    def row(self) -> dict[str, object]:
        (row,) = self.machine.json("status")["mounts"]
        assert isinstance(row, dict)
        return row

    def assert_all_right(self) -> None:
        drop_page_cache()
        done = subprocess.run(["diff", "-r", self.source, self.target], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def drop_page_cache() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Iterator[Crashing]:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    found = Crashing(tmp_path_factory.mktemp("crashing"))
    try:
        found.mount()
        yield found
    finally:
        found.close()
    assert not os.path.ismount(found.target)
