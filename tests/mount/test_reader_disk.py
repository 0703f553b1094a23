"""`boxlink render` in `reader` mode while the disk of its cache is full, out of inodes or read-only: it serves on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import end_session
from tests.reader_site import ReaderSite


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


class Site(ReaderSite):
    """``disk``: where the render server's caches are."""

    def __init__(self, place: Path, disk: Path) -> None:
        super().__init__(place, 20)
        self.disk = disk

    def serve(self) -> int:
        """The port that it serves on."""
        before = self.machine.environment
        self.machine.environment = before | {"XDG_CACHE_HOME": str(self.disk)}
        self.start_render()
        self.machine.environment = before
        return self.ready_port()

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
    port = site.serve()
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
