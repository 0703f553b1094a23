"""The word ``from=snap-…``: the volume is swapped; the daemon may be killed at each step of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.volume_layout import decode_header
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mount, unmount
from synclib.volume.base import BLOCK_BYTES, VolumeState
from tests.mount.test_from_snapshot import SnapshotSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SnapshotSite]:
    if os.geteuid() != 0:
        pytest.skip("volumes are attached by root alone")
    found = SnapshotSite(tmp_path / "site", tmp_path / "pool")
    try:
        yield found
    finally:
        found.close()


def test_the_named_snapshot_takes_the_place_of_the_one_that_stands_there(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.publish(2)
    second = site.machine.json("snapshot", "create", "covers", "--pool", site.pool)["snapshot"]
    site.wait(lambda: site.down()["seq"] == 2)
    assert site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1", "the newer one is not taken by itself"
    with (site.covers / "text").open("rb") as held:  # who reads all the while reads on
        (site.covers / "synch.active").write_text(f"seq=2 from={second}")
        site.wait(lambda: site.down()["reason"] == f"from snapshot {second}, seq 2")
        assert held.read() == (site.source / "text").read_bytes()
    site.wait(lambda: [volume.snapshot_id for volume in site.driver.volumes()] == [second])
    site.hide_packs()
    site.assert_same()
    (site.covers / "synch.active").write_text("seq=2 from=snap-0000")
    site.wait((site.covers / "synch.error").exists)
    assert "snap-0000 cannot be used" in (site.covers / "synch.error").read_text()
    assert site.down()["reason"] == f"from snapshot {second}, seq 2", "what stands there stands on"


def test_where_the_new_one_is_of_no_use_the_former_one_serves_again(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start("--no-hydrate")
    site.wait(lambda: site.down()["seq"] == 1)
    site.publish(2)
    second = site.machine.json("snapshot", "create", "covers", "--pool", site.pool)["snapshot"]
    spoil_map(site, second)
    (site.covers / "synch.active").write_text(f"seq=2 from={second}")
    error = site.covers / "synch.error"
    site.wait(lambda: error.exists() and "the map of the volume" in error.read_text())
    site.wait(lambda: in_use(site) == [site.snapshot] and site.served_from() == site.snapshot)
    # It is read from: the store no longer has what is on it.
    site.hide_packs()
    before = site.figures()["volume_chunks"]
    assert (site.covers / "large").read_bytes() == (site.source / "large").read_bytes()
    assert site.figures()["volume_chunks"] > before
    assert sorted(each.snapshot_id for each in site.driver.volumes()) == sorted([site.snapshot, second])
    (site.covers / "synch.active").write_text("seq=1 from=snapshot")
    site.wait(lambda: [each.snapshot_id for each in site.driver.volumes()] == [site.snapshot])
    assert in_use(site) == [site.snapshot], "what nobody asks for any more is not paid for"


def test_killed_at_each_step_it_is_finished_by_the_next_start(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.stop()
    snapshots = [site.snapshot]
    site.publish(2)
    snapshots.append(site.machine.json("snapshot", "create", "covers", "--pool", site.pool)["snapshot"])
    step, is_killed = 0, True
    while is_killed:
        step += 1
        seq = 1 + step % 2
        wanted = snapshots[seq - 1]
        (site.covers / "synch.active").write_text(f"seq={seq} from={wanted}")
        is_killed = killed_at(site, step)
        site.start()
        site.wait(lambda reason=f"from snapshot {wanted}, seq {seq}": site.down()["reason"] == reason)
        # The volume that was swapped for another is not paid for.
        site.wait(lambda wanted=wanted: [each.snapshot_id for each in site.driver.volumes()] == [wanted])
        assert [each.state for each in site.driver.volumes()] == [VolumeState.IN_USE]
        if seq == 2:
            site.assert_same()
        site.stop()
    assert step > 6, "there are that many"


def killed_at(site: SnapshotSite, step: int) -> bool:
    """Whether the daemon came to a step, and was killed there; else it did all that there was to do."""
    words = ["--data", str(site.data), "--poll", "0.2", "--no-hydrate", "--pool", str(site.pool), "--once"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.mount.killed_sync", str(step), "sync", *words],
        env=site.machine.environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr.decode()
    return done.returncode == -9


def spoil_map(site: SnapshotSite, snapshot: str) -> None:
    """What its header says its map is it is not any more: that is seen when the new volume has been attached."""
    with site.driver.image(snapshot).open("r+b", buffering=0) as file:
        header = decode_header(os.pread(file.fileno(), BLOCK_BYTES, 0))
        assert header.record is not None
        assert header.newest is not None
        os.pwrite(file.fileno(), b"wrong", header.layout.slot(header.newest) + header.record.map_offset + 100)


def in_use(site: SnapshotSite) -> list[str]:
    return [volume.snapshot_id for volume in site.driver.volumes() if volume.state is VolumeState.IN_USE]


@pytest.mark.parametrize("then", ["it is asked for still", "it is withdrawn", "the store is away"])
def test_killed_while_the_new_one_is_of_no_use_the_former_one_serves_again(site: SnapshotSite, then: str) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.stop()
    site.publish(2)
    second = site.machine.json("snapshot", "create", "covers", "--pool", site.pool)["snapshot"]
    spoil_map(site, second)
    store, away = site.machine.place / "store", site.machine.place / "away"
    for _ in range(2):
        (site.covers / "synch.active").write_text(f"seq=2 from={second}")
        assert killed_at(site, 5)
        assert in_use(site) in ([], [second]), "the former one is away"
        if then == "it is withdrawn":
            (site.covers / "synch.active").write_text("seq=1 from=snapshot")
        if then == "the store is away":
            store.rename(away)
        site.start("--no-hydrate")
        site.wait(lambda: in_use(site) == [site.snapshot] and site.served_from() == site.snapshot)
        site.wait(lambda: site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1")
        if then == "it is withdrawn":
            site.wait(lambda: [each.snapshot_id for each in site.driver.volumes()] == [site.snapshot])
        site.stop()
        if then == "the store is away":
            away.rename(store)


def test_a_full_disk_amid_a_swap_brings_the_former_one_back(site: SnapshotSite) -> None:
    (site.covers / "synch.active").write_text("from=snapshot")
    site.start("--no-hydrate")
    site.wait(lambda: site.down()["seq"] == 1)
    site.publish(2)
    second = site.machine.json("snapshot", "create", "covers", "--pool", site.pool)["snapshot"]
    # Where the new volume's map is to be copied to.
    (maps,) = (site.machine.place / "cache/boxlink").glob("*/lazy/volume")
    own = [path.read_bytes() for path in maps.iterdir()]
    mount(b"tmpfs", os.fsencode(maps), b"tmpfs", 0, b"size=4k")
    try:
        (site.covers / "synch.active").write_text(f"seq=2 from={second}")
        site.wait((site.covers / "synch.error").exists)
        assert "full" in json.loads((site.covers / "synch.error").read_text())["kind"]
        site.wait(lambda: in_use(site) == [site.snapshot] and site.served_from() == site.snapshot)
        site.wait(lambda: site.down()["reason"] == f"from snapshot {site.snapshot}, seq 1")
    finally:
        unmount(os.fsencode(maps), MNT_DETACH | UMOUNT_NOFOLLOW)
    assert [path.read_bytes() for path in maps.iterdir()] == own
    site.wait(lambda: site.down()["reason"] == f"from snapshot {second}, seq 2")
