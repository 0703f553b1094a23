"""One tree, published once, mounted in each way that serves files, beside a plain copy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine
from tests.mount.same.everything import make_everything


@dataclass(frozen=True)
class Pair:
    """A plain copy and a mount of the same tree. ``place``: for what a test makes."""

    mode: str
    copy: bytes
    mount: bytes
    place: Path
    machine: Machine

    @property
    def has_links(self) -> bool:
        """A FUSE tree shows the names of a hard link as files of their own."""
        return self.mode != "fuse"

    def forget(self) -> None:
        """The kernel has nothing of it in memory, so that it asks."""
        Path("/proc/sys/vm/drop_caches").write_text("3" if self.mode == "fuse" else "1")

    def sides(self) -> tuple[bytes, bytes]:
        self.forget()
        return self.copy, self.mount

    def row(self) -> dict[str, object]:
        (row,) = self.machine.json("status")["mounts"]
        assert isinstance(row, dict)
        return row


@dataclass(frozen=True)
class Published:
    """Where the store and the copy are."""

    store: str
    copy: Path


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Published:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    place = tmp_path_factory.mktemp("everything")
    open_to_others(place)
    publisher = Machine(place)
    make_everything(place / "source")
    publisher.run("init")
    publisher.run("publish", "covers", place / "source")
    subprocess.run(["cp", "-a", place / "source", place / "copy"], check=True)
    return Published(publisher.store, place / "copy")


def open_to_others(place: Path) -> None:
    """Other users may pass through the directories that pytest has made for one."""
    for path in (place, *place.parents[:2]):
        os.chmod(path, 0o755)


@contextlib.contextmanager
def mounted_pair(place: Path, published: Published, mode: str, *words: str) -> Iterator[Pair]:
    machine = Machine(place, published.store)
    target = place / "mount"
    target.mkdir(parents=True)
    open_to_others(place)
    kind = ["--mode", "fuse"] if mode == "fuse" else []
    if mode == "native":
        hydrate(machine, target)
    else:
        words = ("--no-hydrate", *words)
    done = machine.json("mount", "covers", target, *kind, *words)
    try:
        assert done["mode"] == ("fuse" if mode == "fuse" else "erofs")
        assert done["served"] == ("native" if mode == "native" else "daemon")
        yield Pair(mode, os.fsencode(published.copy), os.fsencode(target), place, machine)
    finally:
        machine.run("umount", target, "--force")


def hydrate(machine: Machine, target: Path) -> None:
    """All is here, and nothing is mounted."""
    machine.run("mount", "covers", target)
    deadline = time.monotonic() + 120
    while machine.json("status")["mounts"][0].get("hydration") != "done":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    machine.run("umount", target)


@pytest.fixture(scope="module", params=["erofs", "fuse", "native"])
def pair(
    request: pytest.FixtureRequest, published: Published, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    with mounted_pair(tmp_path_factory.mktemp(request.param), published, request.param) as found:
        yield found
        if found.mode != "native":
            assert found.row()["errors"] == 0
