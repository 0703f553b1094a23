"""Attached volumes as block devices of this machine: loop devices on images, found where udev would put their links.

Needs root. What is written to a device is in the volume once it is on the disk: whoever snapshots a mounted file system
has to freeze it first, as on EC2.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from synclib.volume.base import BLOCK_BYTES, GIB
from tests.aws.records import Ids
from tests.aws.site import BlockFile
from tests.aws.standin import Standin
from tests.aws.volumes import Devices, VolumeRecord

UDEV_LINKS = Path("/dev/disk/by-id")
_ZERO_DIGEST = hashlib.sha256(bytes(BLOCK_BYTES)).digest()


def why_not() -> str:
    """Why there can be no loop devices here; empty where there can."""
    if os.geteuid() != 0:
        return "loop devices need root"
    tried = subprocess.run(["losetup", "--find"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"losetup: {tried.stderr.decode().strip()}"


class LoopDevices(Devices):
    """``links``: the directory of udev's links, which EbsDriver looks in."""

    def __init__(self, blocks: BlockFile, directory: Path, links: Path) -> None:
        self._blocks = blocks
        self._directory = directory
        self._links = links
        self._devices: dict[str, str] = {}

    def appear(self, volume: VolumeRecord) -> None:
        image = self._image(volume)
        with image.open("wb") as file:
            file.truncate(volume.size_gib * GIB)
            for index, block in volume.blocks.items():
                os.pwrite(file.fileno(), self._blocks.read(block), index * BLOCK_BYTES)
        made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, check=True)
        self._devices[volume.id] = made.stdout.decode().strip()
        self._link(volume).symlink_to(self._devices[volume.id])

    def vanish(self, volume: VolumeRecord) -> None:
        if volume.id not in self._devices:
            return
        self.collect(volume)
        self._link(volume).unlink()
        subprocess.run(["losetup", "--detach", self._devices.pop(volume.id)], check=True)
        self._image(volume).unlink()

    def collect(self, volume: VolumeRecord) -> None:
        if volume.id not in self._devices:
            return
        device = os.open(self._devices[volume.id], os.O_RDWR)
        try:
            os.fsync(device)
        finally:
            os.close(device)
        found = dict(self._held(volume))
        for index in found.keys() | volume.blocks.keys():
            data = found.get(index, bytes(BLOCK_BYTES))
            before = volume.blocks.get(index)
            if hashlib.sha256(data).digest() != (_ZERO_DIGEST if before is None else before.digest):
                volume.blocks[index] = self._blocks.add(data)

    def is_busy(self, volume: VolumeRecord) -> bool:
        """A device that is mounted cannot be opened by one alone (open(2), O_EXCL on block devices)."""
        if volume.id not in self._devices:
            return False
        try:
            os.close(os.open(self._devices[volume.id], os.O_RDONLY | os.O_EXCL))
        except OSError:
            return True
        return False

    def end_all(self) -> None:
        for device in self._devices.values():
            subprocess.run(["losetup", "--detach", device], check=False)
        for volume_id in self._devices:
            with suppress(FileNotFoundError):
                (self._links / _name(volume_id)).unlink()
        self._devices.clear()

    def _held(self, volume: VolumeRecord) -> Iterator[tuple[int, bytes]]:
        """The blocks of an image in which anything was written."""
        with self._image(volume).open("rb") as file:
            stop = 0
            while True:
                try:
                    start = os.lseek(file.fileno(), stop, os.SEEK_DATA)
                except OSError:
                    return
                index = max(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
                stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                while index * BLOCK_BYTES < stop:
                    yield index, os.pread(file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES)
                    index += 1
                stop = max(stop, index * BLOCK_BYTES)

    def _image(self, volume: VolumeRecord) -> Path:
        return self._directory / f"{volume.id}.img"

    def _link(self, volume: VolumeRecord) -> Path:
        return self._links / _name(volume.id)


def _name(volume_id: str) -> str:
    return f"nvme-Amazon_Elastic_Block_Store_{volume_id.replace('-', '')}"


@contextmanager
def loop_devices(standin: Standin, directory: Path, links: Path = UDEV_LINKS) -> Iterator[LoopDevices]:
    """From here on attached volumes are devices of this machine, whichever instance has them."""
    directory.mkdir(parents=True, exist_ok=True)
    links.mkdir(parents=True, exist_ok=True)
    devices = LoopDevices(standin.site.blocks, directory, links)
    # Links of several runs may lie in one directory.
    standin.site.ids = Ids(secrets.randbits(60))
    standin.volumes.devices = devices
    try:
        yield devices
    finally:
        with standin.locked():
            devices.end_all()
            standin.volumes.devices = Devices()
        with suppress(OSError):
            links.rmdir()  # where nobody else has a link in it
