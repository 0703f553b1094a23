"""The local driver in a pool of its own: an xfs file system in a loop image, and volumes as loop devices on it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.disk.mounts import MNT_DETACH, mounted_on, unmount
from synclib.errors import Conflict
from synclib.volume import local_pool
from synclib.volume.base import BLOCK_BYTES, Snapshot
from synclib.volume.local import LocalDriver
from synclib.volume.local_pool import loop_devices

_GONE_S = 10.0  # a device that a process which was just killed had open goes with it


class LocalPlace:
    """Only for root: nobody else can attach."""

    zone, other_zone = "here", ""
    node, other_node = "n1", "n2"

    def __init__(self, directory: Path) -> None:
        self.clock = SystemClock()
        self.driver = LocalDriver(directory / "pool", self.clock)

    def advance(self, seconds: float) -> None:
        """Nothing moves by itself."""

    def write(self, volume_id: str, index: int, data: bytes) -> None:
        with self._device(volume_id).open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, index * BLOCK_BYTES)
            os.fsync(file.fileno())

    def read(self, volume_id: str, index: int) -> bytes:
        with self._device(volume_id).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES)

    def _device(self, volume_id: str) -> Path:
        (volume,) = self.driver.volumes([volume_id])
        return self.driver.device(volume)


@contextmanager
def local_volumes(directory: Path) -> Iterator[LocalPlace]:
    """Where an attached volume can be cloned; skipped where it would be copied, which :func:`copied_volumes` has."""
    with _place(directory) as place:
        need_clones(place.driver)
        yield place


@contextmanager
def copied_volumes(directory: Path) -> Iterator[LocalPlace]:
    """Where there is no mkfs.xfs: what a volume or a snapshot is made of is copied."""
    with _no_clones(), _place(directory) as place:
        place.driver = _Obedient(directory / "pool", place.clock)
        yield place
        assert "mkfs.xfs" in place.driver.pool.why_copies or not (directory / "pool").exists()


def need_clones(driver: LocalDriver) -> None:
    """Skip what only a pool of clones can do. The pool is made."""
    with driver.pool.locked():
        pass
    if driver.pool.why_copies:
        pytest.skip(f"a pool here copies its images: {driver.pool.why_copies}")


@contextmanager
def _place(directory: Path) -> Iterator[LocalPlace]:
    if os.geteuid() != 0:
        pytest.skip("the local driver attaches volumes for root alone")
    try:
        yield LocalPlace(directory)
    finally:
        end_pool(directory / "pool")


@contextmanager
def _no_clones() -> Iterator[None]:
    """In this process pools copy, as where mkfs.xfs is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_pool.shutil, "which", lambda name: None if name == "mkfs.xfs" else f"/sbin/{name}")
        patch.setattr(local_pool, "_can_clone", lambda directory: False)
        yield


class _Obedient(LocalDriver):
    """Does what the driver says where it cannot copy a volume that is in use: takes it off meanwhile."""

    def snapshot(self, volume_id: str, *, token: str, tags: Mapping[str, str]) -> Snapshot:
        try:
            return super().snapshot(volume_id, token=token, tags=tags)
        except Conflict as error:
            if error.hint != "detach it first":
                raise
        (volume,) = self.volumes([volume_id])
        self.detach(volume_id, volume.node)
        found = super().snapshot(volume_id, token=token, tags=tags)
        self.attach(volume_id, volume.node)
        return found


def end_pool(pool: Path) -> None:
    """Every loop device and mount of a pool goes; what does not is an error of the test."""
    slow = [*pool.glob("xfs/slow/*"), *pool.glob("slow/*")]
    for image in (*pool.glob("xfs/volumes/*.img"), *pool.glob("volumes/*.img"), *(place / "image" for place in slow)):
        for device in loop_devices(image):
            subprocess.run(["losetup", "-d", str(device)], check=False)
    for place in slow:
        with contextlib.suppress(OSError):
            unmount(os.fsencode(place), MNT_DETACH)
    mount = os.fsencode(os.path.realpath(pool / "xfs"))
    while mounted_on(mount):
        unmount(mount, MNT_DETACH)
    deadline = time.monotonic() + _GONE_S
    while left := _left(pool):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def _left(pool: Path) -> list[str]:
    """Files below a pool that loop devices have, and what is mounted there."""
    place = os.path.realpath(pool) + "/"
    found = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it went meanwhile
            found.append(path.read_text())
    return [each for each in found if each.startswith(place)]
