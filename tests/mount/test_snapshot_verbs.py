"""`boxlink snapshot` as people use it, with the local driver: a pool of reflinks, loop devices, kills."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.rollout import NodeSpec, State
from synclib.core.snapshot_tags import IN_USE
from synclib.core.volume_layout import decode_header
from synclib.engine.rollout import plan
from synclib.engine.rollout_journal import Entry, Journal
from synclib.store.file import FileStore
from synclib.volume import local_pool
from synclib.volume.base import VolumeState
from synclib.volume.local import LocalDriver
from synclib.volume.local_pool import loop_devices, run
from tests.conformance.local_volumes import end_pool, need_clones
from tests.e2e.boxlink_process import Machine, end_session
from tests.kit import Kit
from tests.mount.mounted import make_tree
from tests.volume_checks import complete_ones


class Shelf:
    """A published dataset and a pool: of clones, where that can be had here."""

    def __init__(self, place: Path, path: str = "") -> None:
        self.machine = Machine(place)
        if path:
            self.machine.environment["PATH"] = path
        self.source, self.pool = place / "source", place / "state/boxlink/volumes"
        make_tree(self.source)
        self.machine.run("init")
        self.machine.run("publish", "covers", self.source)
        self.kit = Kit(place, FileStore(place / "store", SystemClock(), SystemEntropy()))

    def snapshot(self, *words: object, code: int = 0) -> dict[str, Any]:
        return self.machine.json("snapshot", *words, code=code)

    def publish(self, number: int) -> None:
        (self.source / "text").unlink()
        (self.source / "text").write_bytes(b"seq %d" % number)
        (self.source / f"more {number}").write_bytes(random.Random(number).randbytes(700_000))
        self.machine.run("publish", "covers", self.source)

    @property
    def driver(self) -> LocalDriver:
        return LocalDriver(self.pool, SystemClock())


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    found = Shelf(tmp_path)
    try:
        yield found
    finally:
        end_pool(found.pool)


@pytest.fixture
def copying(tmp_path: Path) -> Iterator[Shelf]:
    """A shelf whose commands find no mkfs.xfs."""
    if local_pool._can_clone(tmp_path):
        pytest.skip("the file system here clones by itself")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("losetup", "mount", "umount"):
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(f"there is no {name}"))
    found = Shelf(tmp_path, str(programs))
    try:
        yield found
    finally:
        end_pool(found.pool)


def test_create_show_and_prune(shelf: Shelf) -> None:
    planned = shelf.snapshot("create", "covers", "--dry-run")
    assert (planned["new"], planned["snapshot"]) == (False, "")
    first = shelf.snapshot("create", "covers", "--direct")
    assert (first["new"], first["seq"], first["blocks"]) == (True, 1, planned["blocks"])
    assert shelf.snapshot("create", "covers")["new"] is False
    names = [first["snapshot"]]
    for number in (2, 3):
        shelf.publish(number)
        done = shelf.snapshot("create", "covers")
        assert (done["parent"], done["why_full"]) == (names[-1], "")
        assert done["blocks"] < first["blocks"]
        names.append(done["snapshot"])
    listed = shelf.snapshot("ls")
    assert [row["snapshot"] for row in listed["snapshots"]] == names[::-1]
    assert all(row["complete"] for row in listed["snapshots"])
    shown = shelf.snapshot("show", names[-1])
    assert sorted(slot["seq"] for slot in shown["slots"]) == [2, 3]
    assert names[0] in shelf.machine.run("snapshot", "ls", "covers").decode()
    assert b"data/covers seq 3" in shelf.machine.run("snapshot", "show", names[-1])
    assert complete_ones(shelf.kit, shelf.driver) == names[::-1]
    # The newest stays whatever is asked for, and what somebody needs.
    shelf.driver.tag(names[0], {IN_USE: "upgrade"})
    assert [row["snapshot"] for row in shelf.snapshot("prune", "--keep-last", 1, "--dry-run")["deleted"]] == [names[1]]
    assert shelf.snapshot("prune", "covers", "--older-than", "1h")["deleted"] == []
    shelf.snapshot("prune", "covers", "--keep-last", 1)
    assert complete_ones(shelf.kit, shelf.driver) == [names[2], names[0]]
    assert "which are to go" in shelf.snapshot("prune", code=2)["error"]["message"]
    assert "there is no" in shelf.snapshot("show", "snap-0", code=10)["error"]["message"]


def test_what_an_upgrade_under_way_needs_is_not_pruned(shelf: Shelf) -> None:
    """Tagged or not: whoever was killed may not have come to it, and of two upgrades one ends first."""
    snapshots = [shelf.snapshot("create", "covers")["snapshot"]]
    for number in (2, 3, 4):
        shelf.publish(number)
        snapshots.append(shelf.snapshot("create", "covers")["snapshot"])
    journal = Journal(shelf.kit.store, shelf.kit.host)

    def begin(role: str, old: str, new: str) -> Entry:
        def new_of(spec: NodeSpec) -> NodeSpec:
            return spec.model_copy(update={"node": f"{spec.node}-new", "snapshot": new})

        olds = [NodeSpec(node=f"{role}-1", role=role, snapshot=old)]
        return journal.create(plan(journal.find(role).next_id, olds, new_of, 1, ""))

    def pruned(*words: object) -> list[str]:
        return sorted(row["snapshot"] for row in shelf.snapshot("prune", *words, "--keep-last", 1)["deleted"])

    ended = begin("render", "", snapshots[2])
    journal.replace(ended, ended.rollout.model_copy(update={"state": State.DONE}))
    one = begin("render", snapshots[0], snapshots[1])
    other = begin("render-more", "", snapshots[1])
    assert pruned("--dry-run") == pruned() == [snapshots[2]]
    journal.replace(one, one.rollout.model_copy(update={"state": State.DONE}))
    assert pruned() == [snapshots[0]], "what only the one needed to go back"
    journal.replace(other, other.rollout.model_copy(update={"state": State.ROLLED_BACK}))
    assert pruned() == [snapshots[1]]
    # A journal that cannot be read says nothing of what is needed.
    shelf.publish(5)
    shelf.snapshot("create", "covers")
    shelf.kit.store.put("upgrade/render-000003", b"{")
    assert shelf.snapshot("prune", "--keep-last", 1, code=20)["error"]["kind"] == "corrupt"


def test_a_tag_cannot_make_the_last_good_one_go(shelf: Shelf) -> None:
    good = shelf.snapshot("create", "covers")["snapshot"]
    (known,) = shelf.driver.snapshots([good])
    blocks = shelf.driver.blocks()
    hostile = {**known.tags, "boxlink:seq": "999999"}
    bad = blocks.start(size_gib=1, parent_id="", token="hostile", tags=hostile)
    digest = blocks.put(bad.id, 0, bytes(1 << 19))
    blocks.complete(bad.id, changed_count=1, checksum=hashlib.sha256(digest).digest())
    assert shelf.driver.snapshots([bad.id])[0].state == "completed"
    assert [row["snapshot"] for row in shelf.snapshot("prune", "covers", "--keep-last", 1)["deleted"]] == [bad.id]
    assert [found.id for found in shelf.driver.snapshots()] == [good]


def test_by_way_of_a_volume(shelf: Shelf) -> None:
    first = shelf.snapshot("create", "covers")["snapshot"]
    made = shelf.snapshot("volume", first, "--zone", "here")
    assert (made["zone"], made["lazy"], made["usd_month"]) == ("here", shelf.driver.pool.is_lazy, 0)
    assert bool(made["why_copies"]) == bool(shelf.driver.why_copies) == (not made["lazy"])
    assert shelf.snapshot("volume", first, "--zone", "here")["volume"] == made["volume"]
    shelf.publish(2)
    done = shelf.snapshot("create", "covers", "--volume", made["volume"])
    assert (done["seq"], done["new"], done["why_full"]) == (2, True, "")
    assert complete_ones(shelf.kit, shelf.driver) == [done["snapshot"], first]
    (volume,) = shelf.driver.volumes()
    assert volume.state is VolumeState.AVAILABLE
    # The next one, direct, is made upon it.
    shelf.publish(3)
    assert shelf.snapshot("create", "covers")["parent"] == done["snapshot"]
    assert len(complete_ones(shelf.kit, shelf.driver)) == 3


def test_by_way_of_a_volume_where_images_are_copied(copying: Shelf) -> None:
    """No volume can be copied while somebody may write to it: one that was lent is let go before."""
    driver = copying.driver
    first = copying.snapshot("create", "covers")["snapshot"]
    made = copying.snapshot("volume", first)
    assert made["lazy"] is False
    copying.publish(2)
    done = copying.snapshot("create", "covers", "--volume", made["volume"])
    assert (done["seq"], done["new"], done["why_full"]) == (2, True, "")
    assert complete_ones(copying.kit, driver) == [done["snapshot"], first]
    assert driver.volumes()[0].state is VolumeState.AVAILABLE
    # One that somebody has is theirs: it says what to do, and afterwards it goes on.
    driver.attach(made["volume"], "n1")
    copying.publish(3)
    refused = copying.snapshot("create", "covers", "--volume", made["volume"], code=13)["error"]
    assert "attached" in refused["message"]
    assert refused["hint"] == "detach it first"
    assert driver.volumes()[0].state is VolumeState.IN_USE
    driver.detach(made["volume"], "n1")
    last = copying.snapshot("create", "covers", "--volume", made["volume"])
    assert complete_ones(copying.kit, driver) == [last["snapshot"], done["snapshot"], first]


@pytest.fixture
def pools(shelf: Shelf) -> Iterator[tuple[Path, Path]]:
    found = shelf.machine.place / "one", shelf.machine.place / "other"
    try:
        yield found
    finally:
        for pool in found:
            end_pool(pool)


def test_both_ways_make_the_same_of_the_same(shelf: Shelf, pools: tuple[Path, Path]) -> None:
    """Each seq upon the one before it, in a pool of each way: every block is equal, the header's too."""
    for number in range(60):
        (shelf.source / f"many {number:02}").write_bytes(random.Random(number).randbytes(100_000))
    shelf.machine.run("publish", "covers", shelf.source)
    drivers = [LocalDriver(pool, SystemClock()) for pool in pools]
    made = [shelf.snapshot("create", "covers", "--pool", pool)["snapshot"] for pool in pools]
    assert_equal_blocks(drivers, made)
    for seq in (3, 4):  # each into another slot
        for gone in range(15 * (seq - 3), 15 * (seq - 2)):
            (shelf.source / f"many {gone:02}").unlink()
        shelf.publish(seq)
        direct = shelf.snapshot("create", "covers", "--pool", pools[0])
        volume = shelf.snapshot("volume", made[1], "--pool", pools[1])["volume"]
        by_way = shelf.snapshot("create", "covers", "--pool", pools[1], "--volume", volume)
        for what in ("seq", "digest", "new", "blocks", "zero_blocks", "size_gib", "why_full"):
            assert direct[what] == by_way[what], what
        assert direct["zero_blocks"] > 0
        made = [direct["snapshot"], by_way["snapshot"]]
        assert_equal_blocks(drivers, made)


def assert_equal_blocks(drivers: list[LocalDriver], snapshots: list[str]) -> None:
    blocks = [driver.blocks() for driver in drivers]
    both = list(zip(blocks, snapshots, strict=True))
    some = sorted({index for each, snapshot in both for index in each.written(snapshot)})
    assert len(some) > 15
    for index in some:
        one, other = (each.get(snapshot, index) for each, snapshot in both)
        assert one == other, index


def test_why_images_are_copied_is_said(copying: Shelf) -> None:
    process = copying.machine.start("snapshot", "create", "covers")
    _, said = process.communicate(timeout=120)
    why = "mkfs.xfs is not installed (xfsprogs, util-linux)"
    assert f"boxlink: images are copied whole here: {why}" in said.decode()
    again = copying.snapshot("create", "covers")
    assert (again["new"], again["why_copies"]) == (False, why)
    process = copying.machine.start("snapshot", "volume", again["snapshot"])
    out, said = process.communicate(timeout=120)
    assert out.decode().rstrip().endswith(", copied whole")
    assert f"copied whole here: {why}" in said.decode()
    assert copying.snapshot("volume", again["snapshot"])["why_copies"] == why


def test_a_pool_that_copied_keeps_what_it_has_when_it_could_clone(copying: Shelf) -> None:
    """Somebody installs xfsprogs: what was made before is still found, and grown upon."""
    first = copying.snapshot("create", "covers")["snapshot"]
    copying.machine.environment["PATH"] = os.environ["PATH"]
    assert [row["snapshot"] for row in copying.snapshot("ls")["snapshots"]] == [first]
    copying.publish(2)
    assert copying.snapshot("create", "covers")["parent"] == first


def test_an_empty_volume_is_filled_and_a_strangers_is_refused(shelf: Shelf) -> None:
    driver = shelf.driver
    empty = driver.create_volume(size_gib=1, zone="here", token="empty", tags={})
    done = shelf.snapshot("create", "covers", "--volume", empty.id)
    assert done["why_full"] == "the volume is empty"
    assert complete_ones(shelf.kit, driver) == [done["snapshot"]]
    other = driver.create_volume(size_gib=1, zone="here", token="other", tags={})
    driver.attach(other.id, "n1")
    device = driver.device(other)
    with device.open("r+b", buffering=0) as file:
        file.write(b"somebody's file system" * 1000)
    shelf.publish(2)
    before = head_of(device)
    assert shelf.snapshot("create", "covers", "--volume", other.id, code=20)["error"]["kind"] == "corrupt"
    assert head_of(device) == before


def head_of(device: Path) -> bytes:
    with device.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), 100_000, 0)


def test_a_volume_alone_shows_its_files(shelf: Shelf) -> None:
    """With no store and no boxlink: two loop devices and the kernel (docs/snapshots.md)."""
    shelf.snapshot("create", "covers")
    shelf.publish(2)
    done = shelf.snapshot("create", "covers")
    made = shelf.snapshot("volume", done["snapshot"])
    driver = shelf.driver
    driver.attach(made["volume"], "n1")
    (volume,) = driver.volumes()
    device = driver.device(volume)
    header = decode_header(head_of(device))
    assert header.newest is not None
    target = shelf.machine.place / "by hand"
    target.mkdir()
    image, blob = (
        run("losetup", "--find", "--show", "--read-only", "--offset", str(at), str(device)).strip()
        for at in (header.layout.slot(header.newest), header.layout.blob)
    )
    try:
        run("mount", "-t", "erofs", "-o", f"ro,device={blob}", image, str(target))
        try:
            compared = subprocess.run(["diff", "-r", shelf.source, target], capture_output=True, check=False)
            assert compared.returncode == 0, compared.stdout + compared.stderr
        finally:
            run("umount", str(target))
    finally:
        run("losetup", "-d", image, blob)


@pytest.mark.parametrize("way", ["--direct", "--volume"])
def test_killed_anywhere_and_run_again_it_is_there_once(shelf: Shelf, way: str) -> None:
    """kill -9 of the real command at random moments of its work, again and again; what there is is compared."""
    words: list[object] = ["create", "covers", way]
    if way == "--volume":
        words.append(shelf.driver.create_volume(size_gib=1, zone="here", token="own", tags={}).id)
    chance = random.Random(5)
    whole_s = worked(shelf, None, *words)
    at_work = 0
    for number in range(2, 6):
        shelf.publish(number)
        for _ in range(2):
            at_work += worked(shelf, chance.uniform(0, whole_s), *words) < 0
        done = shelf.snapshot(*words)
        found = complete_ones(shelf.kit, shelf.driver)
        assert found[0] == done["snapshot"]
        assert len(found) == len(shelf.driver.snapshots()) == number
        assert len(shelf.driver.volumes()) == (way == "--volume")
    assert at_work > 1  # how many depends on the machine's other work


@pytest.mark.parametrize(
    ("method", "when", "is_attached"),
    [
        ("attach", "after", False),
        ("detach", "before", False),
        ("detach", "after", False),
        ("snapshot", "before", False),
        ("snapshot", "after", False),
        ("tag", "after", False),
        ("snapshot", "before", True),
        ("tag", "after", True),
    ],
)
def test_killed_while_it_has_the_volume_the_same_again_leaves_that_as_it_was(
    shelf: Shelf, method: str, when: str, is_attached: bool
) -> None:
    """Also where the snapshot is whole already, and nothing is left to do but that."""
    driver = shelf.driver
    if is_attached:
        need_clones(driver)
    volume_id = driver.create_volume(size_gib=1, zone="here", token="own", tags={}).id
    if is_attached:
        driver.attach(volume_id, "n1")
    program = [sys.executable, "-m", "tests.mount.killed_volume_snapshot", shelf.machine.place, volume_id, method, when]
    killed = subprocess.run(program, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    was_held = is_attached or (method, when) in (("attach", "after"), ("detach", "before"))
    assert driver.volumes()[0].state is (VolumeState.IN_USE if was_held else VolumeState.AVAILABLE)
    shelf.snapshot("create", "covers", "--volume", volume_id)
    assert len(complete_ones(shelf.kit, driver)) == len(driver.snapshots()) == 1
    assert driver.volumes()[0].state is (VolumeState.IN_USE if is_attached else VolumeState.AVAILABLE)
    # What somebody attaches afterwards is theirs.
    driver.attach(volume_id, "n1")
    shelf.publish(2)
    shelf.snapshot("create", "covers", "--volume", volume_id, code=0 if driver.pool.is_lazy else 13)
    assert driver.volumes()[0].state is VolumeState.IN_USE


def worked(shelf: Shelf, seconds: float | None, *words: object) -> float:
    """Run the command, and kill it so long after it has begun to change something; how long it worked, -1 if it was
    killed."""
    process = shelf.machine.start("snapshot", *words)
    began = 0.0
    try:
        while process.poll() is None and not began:
            if any((shelf.machine.place / "state/boxlink/snapshot").glob("*/begun.json")) or attached(shelf):
                began = time.monotonic()
        try:
            process.communicate(timeout=120 if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return -1
        return time.monotonic() - began
    finally:
        end_session(process)


def attached(shelf: Shelf) -> bool:
    images = [*shelf.pool.glob("xfs/volumes/*.img"), *shelf.pool.glob("volumes/*.img")]
    return any(loop_devices(image) for image in images)


def test_to_look_makes_no_pool(shelf: Shelf) -> None:
    assert shelf.snapshot("ls")["snapshots"] == []
    assert shelf.snapshot("ls", "covers")["snapshots"] == []
    assert shelf.snapshot("show", "snap-0123", code=10)["error"]["kind"] == "missing"
    assert shelf.snapshot("volume", "snap-0123", code=10)["error"]["kind"] == "missing"
    assert shelf.snapshot("prune", "--keep-last", "1")["seconds"] >= 0
    nodes = shelf.machine.place / "nodes"
    words = ("upgrade", "render", "--local", nodes, "--snapshot", "snap-0123", "--driver", "local")
    assert "no snapshot snap-0123" in shelf.machine.json(*words, code=10)["error"]["message"]
    assert not shelf.pool.exists()
    shelf.snapshot("create", "covers")
    assert len(shelf.snapshot("ls")["snapshots"]) == 1


def test_a_hostile_dataset_tag_is_said(shelf: Shelf) -> None:
    good = shelf.snapshot("create", "covers")["snapshot"]
    (known,) = shelf.driver.snapshots()
    blocks = shelf.driver.blocks()
    bad = {}
    for number, name in enumerate(("../../etc", "", "log", "a\nb")):
        tags = {**known.tags, "boxlink:dataset": name}
        bad[blocks.start(size_gib=1, parent_id="", token=f"{number}", tags=tags).id] = name
    other = {**known.tags, "boxlink:dataset": "gone"}
    unknown = blocks.start(size_gib=1, parent_id="", token="other", tags=other).id
    listed = shelf.snapshot("ls")
    assert {row["snapshot"]: row["dataset"] for row in listed["snapshots"]} == {good: "covers", unknown: "gone"}
    assert set(listed["refused"]) == set(bad)
    for name, why in listed["refused"].items():
        assert f"{bad[name]!r}: no dataset is called so" in why
    assert [row["snapshot"] for row in shelf.snapshot("ls", "covers")["snapshots"]] == [good]
