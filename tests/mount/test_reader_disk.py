"""`boxlink render` in `reader` mode while the disk of its cache is full, out of inodes or read-only: it serves on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.boxlink_process import Machine, end_session
from tests.memory_reader import read_directory
from tests.pictures import small_wall
from tests.render_site import fetch, running_site


def no_inodes(disk: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(1000):
            (disk / f"inode{number}").touch()
    assert os.statvfs(disk).f_ffree == 0


def no_bytes(disk: Path) -> None:
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def read_only(disk: Path) -> None:
    """As ext4 becomes when it meets an error of the device, whatever is open for writing on it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    device = next(Path(source).name for source, target, *_ in mounts if target == str(disk))
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    with pytest.raises(OSError, match="Read-only"):
        (disk / "file").touch()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    with (tmp_path / "image").open("wb") as image:
        image.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m0", "-N200", tmp_path / "image"], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", tmp_path / "image", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class Site:
    def __init__(self, place: Path, disk: Path) -> None:
        self.machine = Machine(place)
        self.source, self.data, self.disk = place / "source", place / "data", disk
        self.write(20)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        (self.data / "covers").mkdir(parents=True)
        (self.data / "covers/synch.active").write_text("reader")
        self.daemon = self.machine.start("sync", "--data", self.data, "--poll", "0.2")
        self.render: subprocess.Popen[bytes] | None = None

    def write(self, covers: int) -> None:
        for path, data in small_wall(covers).items():
            file = self.source / path.decode()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def start_render(self) -> int:
        """The port that it serves on."""
        before = self.machine.environment
        self.machine.environment = before | {"XDG_CACHE_HOME": str(self.disk)}
        words = ("render", "--data", self.data, "--dataset", "covers", "--listen", "127.0.0.1:0", "--json")
        self.render = self.machine.start(*words, stderr=subprocess.DEVNULL)
        self.machine.environment = before
        return int(self.wait_event("ready")["listen"].rpartition(":")[2])

    def wait_event(self, event: str) -> dict[str, Any]:
        assert self.render is not None
        assert self.render.stdout is not None
        for line in self.render.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"render ended with {self.render.wait()}")

    def assert_same_tiles(self, port: int) -> None:
        wall = fetch(port, "/wall.json").json()
        with running_site() as other:
            same = other.show(read_directory(self.source))
            for tile in (f"{wall['zoom_max']}/0/0.jpg", "0/0/0.jpg"):
                answer = fetch(port, f"/tiles/{wall['wall']}/{tile}")
                assert (answer.status, answer.data) == (200, other.get(f"/tiles/{same.id}/{tile}").data)

    def close(self) -> None:
        for process in (self.render, self.daemon):
            if process is not None:
                end_session(process)


@pytest.fixture
def site(tmp_path: Path, disk: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path, disk)) as found:
        yield found


@pytest.mark.parametrize("fail", [no_inodes, no_bytes, read_only])
@pytest.mark.parametrize("is_running", [True, False], ids=["running", "fresh"])
def test_it_serves_and_ends_as_always(site: Site, fail: Callable[[Path], None], is_running: bool) -> None:
    if not is_running:
        fail(site.disk)
    port = site.start_render()
    site.assert_same_tiles(port)
    if is_running:
        fail(site.disk)
    site.write(30)
    site.machine.run("publish", "covers", site.source)
    assert site.wait_event("wall")["seq"] == 2
    site.assert_same_tiles(port)
    assert site.render is not None
    os.kill(site.render.pid, signal.SIGTERM)
    assert site.wait_event("stopped")["unregistered"]
    assert site.render.wait(60) == 0
