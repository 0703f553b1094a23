"""A published tree that is mounted on one machine."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.boxlink_process import Machine

LARGE_BYTES = 5_000_000


def make_tree(top: Path) -> None:
    chance = random.Random(3)
    for folder in range(5):
        (top / f"{folder:02}").mkdir(parents=True)
        for number in range(40):
            (top / f"{folder:02}/{number:03}.jpg").write_bytes(chance.randbytes(chance.choice([1, 4096, 20_000])))
    (top / "large").write_bytes(chance.randbytes(LARGE_BYTES))
    (top / "text").write_bytes(b"compressible " * 20_000)
    (top / "empty").write_bytes(b"")
    (top / "link").symlink_to("00/000.jpg")
    os.link(top / "text", top / "same text")
    os.chmod(top / "large", 0o750)


class Mounted:
    """A published tree, mounted on one machine."""

    def __init__(self, place: Path) -> None:
        self.machine = Machine(place)
        self.mode = ""  # what a test mounts by
        self.source, self.target = place / "source", place / "mount"
        self.target.mkdir()
        make_tree(self.source)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)

    def mount(self, *words: str) -> dict[str, object]:
        """Nothing comes that is not read."""
        return self.machine.json("mount", "covers", self.target, "--no-hydrate", *words)

    def kill(self, done: dict[str, object]) -> None:
        """Both processes of what :meth:`mount` has answered of."""
        keeper, worker = done["keeper"], self.worker()
        assert isinstance(keeper, int)
        os.kill(keeper, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)

    def unmount(self, *words: str, code: int = 0) -> None:
        self.machine.run("umount", self.target, *words, code=code)

    def worker(self) -> int:
        """The worker's pid."""
        found = subprocess.run(
            ["pgrep", "-f", f"tools.mount_worker {self.machine.place}"], capture_output=True, text=True, check=False
        )
        pids = [int(word) for word in found.stdout.split()]
        return pids[0] if pids else 0

    def finding(self, code: int = 0) -> dict[str, Any]:
        """What doctor says of the mount."""
        findings = self.machine.json("doctor", code=code)["findings"]
        return next(row for row in findings if row["what"] == f"mount {self.target}")

    def drop_page_cache(self) -> None:
        """So that the kernel asks again for what it has."""
        Path("/proc/sys/vm/drop_caches").write_text("1")

    def content_path(self) -> Path:
        return next((self.machine.place / "cache/boxlink").glob("*/lazy/blob"))

    def assert_same(self) -> None:
        done = subprocess.run(["diff", "-r", self.source, self.target], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
