"""A node's volume of a snapshot: made once, found again, and made anew when it was deleted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from synclib.clock import ManualClock
from synclib.core.snapshot_tags import SnapshotTags
from synclib.engine.node_volume import make_volume, release_ended, release_volumes
from synclib.errors import Conflict, Unsupported
from synclib.volume import local_pool
from synclib.volume.base import Snapshot, Volume, VolumeState
from synclib.volume.local import LocalDriver
from tests.kit import Kit
from tests.memory_volumes import Killed

TAGS = SnapshotTags("memory:", "covers", 1, "ab" * 32)


class Spent(LocalDriver):
    """As the service: a token that made what is deleted answers with that for ever. ``dies``: right after making."""

    dies = False
    tokens: dict[str, str]

    def create_volume(
        self, *, size_gib: int, zone: str, token: str, tags: Mapping[str, str], snapshot_id: str = ""
    ) -> Volume:
        if token in self.tokens and not self.volumes([self.tokens[token]]):
            return Volume(self.tokens[token], size_gib, VolumeState.CREATING, zone)
        made = super().create_volume(size_gib=size_gib, zone=zone, token=token, tags=tags, snapshot_id=snapshot_id)
        self.tokens[token] = made.id
        if self.dies:
            raise Killed("create")
        return made


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


@pytest.fixture
def driver(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Spent:
    monkeypatch.setattr(local_pool, "_why_no_xfs", lambda: "a test")
    found = Spent(kit.place / "pool", kit.host.clock)
    found.tokens = {}
    return found


@pytest.fixture
def snapshot(driver: Spent) -> Snapshot:
    volume = LocalDriver.create_volume(driver, size_gib=1, zone="a", token="source", tags={})
    found = driver.snapshot(volume.id, token="snapshot", tags={})
    driver.delete_volume(volume.id)
    return found


def test_it_is_made_once(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    first = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    assert make_volume(driver, kit.host, snapshot, TAGS, "a", "n1").id == first.id
    assert make_volume(driver, kit.host, snapshot, TAGS, "a", "n2").id != first.id
    assert len(driver.volumes()) == 2


def test_killed_right_after_it_was_made_it_is_found(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    driver.dies = True
    with pytest.raises(Killed):
        make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    driver.dies = False
    made = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    assert [volume.id for volume in driver.volumes()] == [made.id]
    # On a machine that lost its state too.
    host = replace(kit.host, state=kit.place / "other")
    assert make_volume(driver, host, snapshot, TAGS, "a", "n1").id == made.id


def test_after_a_release_it_is_made_anew(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    first = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    other = make_volume(driver, kit.host, snapshot, TAGS, "a", "n2")
    assert release_volumes(driver, kit.host, TAGS.store, "covers", "n1", first.id) == []
    assert release_volumes(driver, kit.host, TAGS.store, "covers", "n1") == []
    assert [volume.id for volume in driver.volumes()] == [other.id]
    second = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    assert second.id != first.id
    assert second.state is VolumeState.AVAILABLE


def test_those_of_nodes_that_have_ended_go_and_no_others(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    made = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    lives = make_volume(driver, kit.host, snapshot, TAGS, "a", "n2")

    def other(**tags: str) -> str:
        named = {f"boxlink:{name}": value for name, value in tags.items()}
        token = repr(sorted(tags.items()))
        return driver.create_volume(
            size_gib=1, zone="a", token=token, tags={**made.tags, **named}, snapshot_id=snapshot.id
        ).id

    other(dataset="maps")  # ours too
    kept = {lives.id, other(store="file:///other"), other(start="snap-another"), other(start=""), other(node="")}
    asked: list[frozenset[str]] = []

    def ended(names: frozenset[str]) -> set[str]:
        asked.append(names)
        return {"n1"}

    assert release_ended(driver, TAGS.store, ended) == []
    assert {volume.id for volume in driver.volumes()} == kept
    assert release_ended(driver, TAGS.store, ended) == [], "again it finds nothing"
    assert asked == [frozenset({"n1", "n2"}), frozenset({"n2"})]


def test_one_that_is_attached_elsewhere_is_nobody_elses_to_delete(
    kit: Kit, driver: Spent, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    (volume,) = driver.volumes()
    held = replace(volume, node="n9", state=VolumeState.IN_USE)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "volumes", lambda *ids, tags=None: [held])
        assert release_ended(driver, TAGS.store, lambda names: {"n1"}) == []
    assert [each.id for each in driver.volumes()] == [made.id]


def test_one_that_cannot_go_yet_is_named(
    kit: Kit, driver: Spent, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")

    def refuse(volume_id: str) -> None:
        raise Conflict("it is open")

    monkeypatch.setattr(driver, "delete_volume", refuse)
    assert release_volumes(driver, kit.host, TAGS.store, "covers", "n1") == [made.id]


def test_one_that_somebody_deleted_is_made_anew(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    host = replace(kit.host, clock=ManualClock())
    first = make_volume(driver, host, snapshot, TAGS, "a", "n1")
    driver.delete_volume(first.id)
    second = make_volume(driver, host, snapshot, TAGS, "a", "n1")
    assert [volume.id for volume in driver.volumes()] == [second.id] != [first.id]


def test_where_nothing_can_be_cloned_it_is_copied_and_says_so(
    kit: Kit, driver: Spent, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_volume(driver, kit.host, snapshot, TAGS, "a", "n1")
    assert not made.is_lazy
    assert driver.pool.why_copies == "a test"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="only root"):
        driver.attach(made.id, "n1")


def test_what_a_killed_one_left_in_a_pool_goes(kit: Kit, driver: Spent, snapshot: Snapshot) -> None:
    left = [driver.pool.files / "volumes/vol-0.img", driver.pool.files / "snapshots/x.tmp"]
    for path in left:
        path.write_bytes(b"half")
    again = LocalDriver(kit.place / "pool", kit.host.clock)
    assert not any(path.exists() for path in left)
    assert [found.id for found in again.snapshots()] == [snapshot.id]
    assert again.image(snapshot.id).exists()
