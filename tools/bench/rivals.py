"""The tools that are compared, each as its users run it: a local repository, no password that costs time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One command: wall seconds, and the largest of its processes."""

    seconds: float
    peak_bytes: int


def run(command: list[str], environ: Mapping[str, str], cwd: Path | None = None) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environ}, cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {' '.join(command)} ended with {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024)


class Tool(ABC):
    name: str

    def __init__(self, command: str) -> None:
        self.command = command
        self.repository = Path()
        self.environ: dict[str, str] = {}

    def version(self) -> str:
        done = subprocess.run([self.command, *self.version_words], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()[0]

    version_words: tuple[str, ...] = ("--version",)

    def prepare(self, repository: Path) -> None:
        """A fresh, empty repository, with caches of its own."""
        self.repository = repository
        repository.mkdir()
        self.environ = {
            "XDG_CACHE_HOME": str(repository / "cache"),
            "XDG_STATE_HOME": str(repository / "state"),
            "HOME": str(repository),
        }
        self.create()

    @abstractmethod
    def create(self) -> None: ...

    @abstractmethod
    def publish(self, source: Path) -> Run: ...

    @abstractmethod
    def restore(self, source: Path, target: Path) -> Run: ...

    def call(self, *words: str, cwd: Path | None = None) -> Run:
        return run([self.command, *words], self.environ, cwd)


class Boxlink(Tool):
    name = "boxlink"

    def create(self) -> None:
        self.environ["BOXLINK_STORE"] = f"file://{self.repository}/store"
        self.call("init", "-q")

    def publish(self, source: Path) -> Run:
        return self.call("publish", "data", str(source), "-q")

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", "data", str(target), "-q")


class Restic(Tool):
    name = "restic"
    version_words = ("version",)

    def create(self) -> None:
        self.environ |= {"RESTIC_REPOSITORY": str(self.repository / "store"), "RESTIC_PASSWORD": "x"}
        self.call("init", "-q")

    def publish(self, source: Path) -> Run:
        return self.call("backup", "-q", ".", cwd=source)

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", "latest", "-q", "--target", str(target))


class Borg(Tool):
    name = "borg"

    def create(self) -> None:
        self.environ |= {"BORG_REPO": str(self.repository / "store"), "BORG_BASE_DIR": str(self.repository)}
        self.count = 0
        self.call("init", "--encryption=none")

    def publish(self, source: Path) -> Run:
        self.count += 1
        return self.call("create", f"::{self.count}", ".", cwd=source)

    def restore(self, source: Path, target: Path) -> Run:
        target.mkdir()
        return self.call("extract", f"::{self.count}", cwd=target)


class Kopia(Tool):
    name = "kopia"

    def create(self) -> None:
        self.environ |= {"KOPIA_PASSWORD": "x", "KOPIA_CHECK_FOR_UPDATES": "false"}
        self.call(
            "repository", "create", "filesystem", "--path", str(self.repository / "store"), "--block-hash=BLAKE3-256"
        )

    def publish(self, source: Path) -> Run:
        return self.call("snapshot", "create", str(source), "--no-progress")

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("restore", str(source), str(target), "--no-progress")


class Rclone(Tool):
    name = "rclone"
    version_words = ("version",)

    def create(self) -> None:
        self.environ["RCLONE_CONFIG"] = str(self.repository / "rclone.conf")

    def publish(self, source: Path) -> Run:
        return self.call("sync", "-q", str(source), str(self.repository / "store"))

    def restore(self, source: Path, target: Path) -> Run:
        return self.call("sync", "-q", str(self.repository / "store"), str(target))


def installed() -> list[Tool]:
    """boxlink, and those rivals that are on the PATH."""
    tools: list[Tool] = [Boxlink(str(Path(sys.executable).parent / "boxlink"))]
    for kind in (Restic, Borg, Kopia, Rclone):
        found = shutil.which(kind.name)
        if found is None:
            print(f"{kind.name}: not installed, left out")
        else:
            tools.append(kind(found))
    return tools
