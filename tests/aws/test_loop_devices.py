"""Attached volumes that are real block devices: what programs write is what snapshots hold, and who has one mounted
keeps it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.errors import Unavailable
from synclib.volume.base import BLOCK_BYTES, Volume, VolumeState
from synclib.volume.ebs import EbsDriver
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until
from tests.aws.loop_devices import loop_devices, why_not
from tests.aws.requests import block, completed, run
from tests.aws.standin import Standin

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are loop devices")
ZONE = "eu-central-1a"


class Rig:
    def __init__(self, standin: Standin, driver: EbsDriver, nodes: list[str]) -> None:
        self.standin = standin
        self.driver = driver
        self.nodes = nodes

    def settled(self, volume_id: str, state: VolumeState) -> Volume:
        [volume] = wait_until(
            self.driver.volumes,
            [volume_id],
            volume_is(state),
            clock=self.standin.clock,
            entropy=SeededEntropy(2),
            deadline_s=60,
        )
        return volume

    def attached(self, token: str, node: int = 0, snapshot_id: str = "") -> Volume:
        made = self.driver.create_volume(size_gib=1, zone=ZONE, token=token, tags={}, snapshot_id=snapshot_id)
        self.settled(made.id, VolumeState.AVAILABLE)
        self.driver.attach(made.id, self.nodes[node])
        return self.settled(made.id, VolumeState.IN_USE)

    def snapshot(self, volume: Volume, token: str = "s") -> str:
        made = self.driver.snapshot(volume.id, token=token, tags={})
        wait_until(
            self.driver.snapshots,
            [made.id],
            snapshot_is_completed,
            clock=self.standin.clock,
            entropy=SeededEntropy(3),
            deadline_s=60,
        )
        return made.id


@pytest.fixture
def rig(standin: Standin, ec2: Any, ebs: Any, tmp_path: Path) -> Iterator[Rig]:
    links = tmp_path / "by-id"
    with loop_devices(standin, tmp_path / "images", links):
        driver = EbsDriver(ec2, ebs, standin.clock, SeededEntropy(1), by_id=links)
        nodes = [run(ec2, ZONE) for _ in range(2)]
        standin.clock.advance(60)
        yield Rig(standin, driver, nodes)


@contextmanager
def mounted(device: Path, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(device.resolve()), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def make_file_system(device: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", str(device.resolve())], check=True)


def test_device_has_the_snapshots_bytes_and_keeps_what_is_written(rig: Rig, standin: Standin, ebs: Any) -> None:
    base = completed(standin, ebs, {3: block(3), 2047: block(4)})
    volume = rig.attached("one", snapshot_id=base)
    with rig.driver.device(volume).open("r+b") as device:
        device.seek(3 * BLOCK_BYTES)
        assert device.read(BLOCK_BYTES) == block(3)
        device.seek(5 * BLOCK_BYTES + 4096)
        device.write(b"hello")
        device.seek(2047 * BLOCK_BYTES)
        device.write(bytes(BLOCK_BYTES))
    snapshot_id = rig.snapshot(volume)
    blocks = rig.driver.blocks()
    assert list(blocks.changed(base, snapshot_id)) == [5, 2047]
    assert blocks.get(snapshot_id, 5)[4096:4101] == b"hello"
    assert blocks.get(snapshot_id, 2047) == bytes(BLOCK_BYTES)


def test_file_system_moves_by_snapshot_and_by_detach(rig: Rig, tmp_path: Path) -> None:
    volume = rig.attached("one")
    device = rig.driver.device(volume)
    make_file_system(device)
    with mounted(device, tmp_path / "one") as place:
        (place / "seq").write_text("7")
        subprocess.run(["fsfreeze", "--freeze", str(place)], check=True)
        snapshot_id = rig.snapshot(volume)
        subprocess.run(["fsfreeze", "--unfreeze", str(place)], check=True)
        (place / "seq").write_text("8")
    copy = rig.attached("two", 1, snapshot_id)
    with mounted(rig.driver.device(copy), tmp_path / "two", "-o", "ro") as place:
        assert (place / "seq").read_text() == "7"
    rig.driver.detach(volume.id, rig.nodes[0])
    rig.settled(volume.id, VolumeState.AVAILABLE)
    with pytest.raises(Unavailable):
        rig.driver.device(volume)
    rig.driver.attach(volume.id, rig.nodes[1])
    moved = rig.settled(volume.id, VolumeState.IN_USE)
    with mounted(rig.driver.device(moved), tmp_path / "one") as place:
        assert (place / "seq").read_text() == "8"


def test_mounted_volume_stays_busy_until_it_is_unmounted(rig: Rig, tmp_path: Path) -> None:
    volume = rig.attached("one")
    device = rig.driver.device(volume)
    make_file_system(device)
    with mounted(device, tmp_path / "one") as place:
        rig.driver.detach(volume.id, rig.nodes[0])
        rig.standin.clock.advance(600)
        assert rig.driver.volumes([volume.id])[0].state is VolumeState.BUSY
        (place / "still").write_text("here")
    rig.settled(volume.id, VolumeState.AVAILABLE)
