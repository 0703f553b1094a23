"""`boxlink sync --from snapshot`: real volumes on loop devices, real mounts, a store that lacks what they have."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.volume_layout import BLOCK_BYTES, decode_header
from synclib.errors import Invalid
from synclib.store.file import FileStore
from synclib.volume.base import VolumeState
from synclib.volume.local import LocalDriver
from tests.conformance.local_volumes import end_pool, need_clones
from tests.kit import Kit
from tests.mount.test_lazy_sync import Site
from tests.volume_checks import complete_ones
from tools.mount_control import ask
from tools.mounted import find_mount


class SnapshotSite(Site):
    """A site whose dataset has a snapshot of its first seq."""

    def __init__(self, place: Path, pool: Path, files: int = 0) -> None:
        place.mkdir()
        super().__init__(place)
        self.pool = pool
        self.many = [self.source / f"many {number:04}" for number in range(files)]
        for number, path in enumerate(self.many):
            path.write_bytes(random.Random(number).randbytes(100_000))
        if files:
            self.machine.run("publish", "covers", self.source)
        self.snapshot = self.machine.json("snapshot", "create", "covers", "--pool", pool)["snapshot"]

    def start(self, *words: str) -> None:
        super().start("--pool", str(self.pool), *words)

    @property
    def driver(self) -> LocalDriver:
        return LocalDriver(self.pool, SystemClock())

    def publish(self, number: int) -> None:
        (self.source / f"more {number}").write_bytes(random.Random(number).randbytes(300_000))
        self.machine.run("publish", "covers", self.source)

    def figures(self) -> dict[str, Any]:
        found = find_mount(self.machine.place / "state/boxlink", os.path.realpath(self.covers))
        assert found is not None
        figures = ask(found[0])
        assert figures is not None
        return figures

    def served_from(self) -> str:
        """The snapshot of the volume that the mount's processes were told to take bytes from."""
        found = find_mount(self.machine.place / "state/boxlink", os.path.realpath(self.covers))
        volume = None if found is None else found[1].prepared.volume
        return "" if volume is None else volume.snapshot_id

    def hide_packs(self) -> None:
        """All but the newest: what is in them the store cannot give any more."""
        packs = sorted((self.machine.place / "store/data/covers/pack").iterdir())
        for pack in packs[:-1]:
            pack.rename(pack.with_name(f"{pack.name}.hidden"))

    def close(self) -> None:
        super().close()
        end_pool(self.pool)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SnapshotSite]:
    found = SnapshotSite(tmp_path / "site", tmp_path / "pool")
    try:
        yield found
    finally:
        found.close()


def test_bytes_come_from_the_snapshot_and_only_what_is_newer_from_the_store(site: SnapshotSite) -> None:
    site.publish(2)
    site.hide_packs()
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 2)
    assert site.down()["mode"] == "lazy"
    assert site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1"
    site.assert_same()
    figures = site.figures()
    assert figures["volume_bytes"] > 5_000_000
    assert 300_000 <= figures["fetched_bytes"] < 400_000
    # The next seq goes on with the same volume.
    site.publish(3)
    site.wait(lambda: site.down()["seq"] == 3)
    site.assert_same()
    assert site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1"
    assert len(site.driver.volumes()) == 1


def test_a_flag_does_the_same_for_all_and_what_is_whole_needs_no_volume(site: SnapshotSite) -> None:
    (site.covers / "synch.active").touch()
    site.is_hydrating = True
    site.start("--from", "snapshot")
    site.wait(lambda: site.down()["seq"] == 1)
    # When all is here it stands on the cache's file, and the volume is gone.
    site.wait(lambda: not site.driver.volumes())
    site.wait(lambda: site.down()["reason"] == "")
    site.assert_same()
    assert site.keepers() == []


@pytest.mark.parametrize("harm", ["blob", "map", "header", "nothing there", "tags", "no snapshot"])
def test_a_wrong_volume_costs_no_byte(site: SnapshotSite, harm: str) -> None:
    """Damage of each part: what is read is right, and where it came from is said."""
    driver = site.driver
    image = driver.image(site.snapshot)
    (known,) = driver.snapshots([site.snapshot])
    with image.open("r+b", buffering=0) as file:
        header = decode_header(os.pread(file.fileno(), BLOCK_BYTES, 0))
        assert header.record is not None
        assert header.newest is not None
        match harm:
            case "blob":
                for at in range(header.layout.blob, header.layout.blob + 6_000_000, 40_000):
                    os.pwrite(file.fileno(), b"wrong", at)
            case "map":
                at = header.layout.slot(header.newest) + header.record.map_offset
                os.pwrite(file.fileno(), b"wrong", at + 100)
            case "header":
                os.pwrite(file.fileno(), b"wrong", 100)
            case "nothing there":
                os.ftruncate(file.fileno(), 0)
            case "tags":
                driver.tag(site.snapshot, {"boxlink:digest": "ab" * 32})
            case _:
                driver.delete_snapshot(site.snapshot)
    (site.covers / "synch.active").write_text("lazy from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    reason = site.down()["reason"]
    site.assert_same()
    if harm == "blob":
        assert reason.startswith("from snapshot")
        assert site.figures()["fetched_bytes"] > 0
    else:
        assert reason.startswith("from the store: there is no complete snapshot of it")
        assert (site.snapshot in reason) == (harm != "no snapshot")
        assert site.figures()["volume_bytes"] == 0
        assert driver.volumes() == []
    assert known.id == site.snapshot


def test_a_nodes_volume_is_brought_on_and_snapshotted_while_it_serves_from_it(tmp_path: Path) -> None:
    """Blocks that it reads are zeroed and filled with other content under its readers: no byte of theirs is wrong, and
    the snapshot is of the new seq."""
    site = SnapshotSite(tmp_path / "site", tmp_path / "pool", files=400)
    try:
        need_clones(site.driver)
        (site.covers / "synch.active").write_text("from=snapshot")
        site.start()
        site.wait(lambda: site.down()["seq"] == 2)
        (volume,) = site.driver.volumes()
        gone = site.many[100:300]
        held = [(path, (site.covers / path.name).open("rb")) for path in gone]  # not read yet
        expected = {path: path.read_bytes() for path in site.many}
        for path in gone:
            path.unlink()
        site.publish(3)
        site.wait(lambda: site.down()["seq"] == 3)
        before = site.figures()["volume_bytes"]
        wrong: list[str] = []
        read = _Reading(site.covers, [path for path in site.many if path not in gone], expected, wrong)
        done = site.machine.json("snapshot", "create", "covers", "--pool", site.pool, "--volume", volume.id)
        meanwhile = site.figures()["volume_bytes"]
        read.end()
        assert (done["seq"], done["new"], done["parent"]) == (3, True, site.snapshot)
        assert done["zero_blocks"] > 10
        assert meanwhile > before, "it was read from while it was written to"
        wrong += [path.name for path, file in held if file.read() != expected[path]]
        assert wrong == []
        site.assert_same()
        (after,) = site.driver.volumes()
        assert (after.id, after.state) == (volume.id, VolumeState.IN_USE)
        kit = Kit(tmp_path / "kit", FileStore(site.machine.place / "store", SystemClock(), SystemEntropy()))
        assert complete_ones(kit, site.driver) == [done["snapshot"], site.snapshot]
        for _, file in held:
            file.close()
    finally:
        site.close()


class _Reading:
    """Four threads that read files, each once, and name those that are ``wrong``, until all are read."""

    def __init__(self, covers: Path, paths: list[Path], expected: dict[Path, bytes], wrong: list[str]) -> None:
        self._covers, self._expected, self._wrong = covers, expected, wrong
        self._threads = [threading.Thread(target=self._read, args=(paths[first::4],)) for first in range(4)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join()

    def _read(self, paths: list[Path]) -> None:
        for path in paths:
            if (self._covers / path.name).read_bytes() != self._expected[path]:
                self._wrong.append(path.name)


def test_a_volume_that_goes_is_not_missed(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    (volume,) = site.driver.volumes()
    os.truncate(site.driver.image(volume.id), 1 << 20)
    site.assert_same()


def test_blocks_that_are_cold_for_too_long_come_from_the_store(site: SnapshotSite) -> None:
    """Three seconds for each block that was never touched, and two are waited."""
    (site.pool / "first_touch_ms").write_text("3000")
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1"
    site.assert_same()
    assert site.figures()["fetched_bytes"] > 0


def test_a_volume_that_is_slow_at_first_touch_gives_right_bytes(site: SnapshotSite) -> None:
    (site.pool / "first_touch_ms").write_text("20")
    site.hide_packs()
    (site.machine.place / "store/data/covers/pack").rename(site.machine.place / "away")
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()
    assert site.figures()["fetched_bytes"] == 0
    (volume,) = site.driver.volumes()
    with pytest.raises(OSError), Path(volume.device).open("r+b", buffering=0) as file:
        file.write(bytes(4096))
    site.kill_mounts()
    site.stop()
    site.driver.detach(volume.id, "n1")
    assert site.driver.volumes()[0].state is VolumeState.AVAILABLE
    (site.pool / "first_touch_ms").write_text("quick")
    with pytest.raises(Invalid, match="no number"):
        site.driver.attach(volume.id, "n1")


def test_after_a_start_of_the_machine_the_volume_is_attached_again(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    (volume,) = site.driver.volumes()
    site.driver.detach(volume.id, "n1")
    shutil.move(site.machine.place / "store", site.machine.place / "away")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()  # without the store
    assert site.driver.volumes()[0].state is VolumeState.IN_USE
    shutil.move(site.machine.place / "away", site.machine.place / "store")


def test_a_volume_that_cannot_be_attached_after_a_start_is_not_said_to_be_served_from(site: SnapshotSite) -> None:
    """It is kept, and tried again with the next start."""
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    said = site.down()["reason"]
    assert said == f"from snapshot {site.snapshot}, seq 1"

    def end() -> None:
        site.stop(signal.SIGKILL)
        site.kill_mounts()
        site.wait(lambda: site.down()["seq"] == 0)

    end()
    (volume,) = site.driver.volumes()
    site.driver.detach(volume.id, "n1")
    site.driver.attach(volume.id, "another")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.served_from() == ""
    assert site.down()["reason"].startswith("from the store: ")
    site.assert_same()
    end()
    site.driver.detach(volume.id, "another")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert (site.down()["reason"], site.served_from()) == (said, site.snapshot)


def test_who_wants_all_files_gets_them_from_the_store(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("eager from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    assert site.down()["mode"] == "eager"
    assert "only a lazy mount starts from a snapshot" in site.down()["reason"]
    assert json.loads((site.covers / "synch.down").read_text())["dataset"] == "covers"
    assert site.driver.volumes() == []
