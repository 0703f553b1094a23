"""What every volume driver does (synclib/volume/base.py), on each that volume_drivers.py names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from synclib.clock import SeededEntropy
from synclib.errors import Conflict, Corrupt, Invalid, Missing
from synclib.volume.base import BLOCK_BYTES, Snapshot, SnapshotBlocks, SnapshotState, Volume, VolumeState
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until, wait_until_gone
from tests.conformance.volume_drivers import DRIVERS, VolumePlace

LONG_S = 120.0
ZEROS = bytes(BLOCK_BYTES)
TAGS = {"boxlink:dataset": "covers", "boxlink:seq": "7"}


def block(seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big")).digest() * (BLOCK_BYTES // 32)


def linear(digests: Mapping[int, bytes]) -> bytes:
    return hashlib.sha256(b"".join(digest for _, digest in sorted(digests.items()))).digest()


@pytest.fixture(params=sorted(DRIVERS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VolumePlace]:
    with DRIVERS[request.param](tmp_path) as place:
        yield place


def settled(place: VolumePlace, volume_id: str, state: VolumeState) -> Volume:
    found = wait_until(
        place.driver.volumes,
        [volume_id],
        volume_is(state),
        clock=place.clock,
        entropy=SeededEntropy(2),
        deadline_s=LONG_S,
    )
    return found[0]


def completed(place: VolumePlace, snapshot_id: str) -> Snapshot:
    found = wait_until(
        place.driver.snapshots,
        [snapshot_id],
        snapshot_is_completed,
        clock=place.clock,
        entropy=SeededEntropy(3),
        deadline_s=LONG_S,
    )
    return found[0]


def make_volume(place: VolumePlace, token: str = "volume", snapshot_id: str = "") -> Volume:
    made = place.driver.create_volume(size_gib=1, zone=place.zone, token=token, tags=TAGS, snapshot_id=snapshot_id)
    return settled(place, made.id, VolumeState.AVAILABLE)


def attached(place: VolumePlace, token: str = "volume", snapshot_id: str = "") -> Volume:
    volume = make_volume(place, token, snapshot_id)
    place.driver.attach(volume.id, place.node)
    return settled(place, volume.id, VolumeState.IN_USE)


def snapshot_of(place: VolumePlace, volume_id: str, token: str = "snapshot") -> Snapshot:
    return completed(place, place.driver.snapshot(volume_id, token=token, tags=TAGS).id)


def direct(
    place: VolumePlace, blocks: SnapshotBlocks, content: Mapping[int, bytes], token: str = "direct", parent_id: str = ""
) -> Snapshot:
    snapshot = blocks.start(size_gib=1, parent_id=parent_id, token=token, tags=TAGS)
    digests = {index: blocks.put(snapshot.id, index, data) for index, data in content.items()}
    blocks.complete(snapshot.id, changed_count=len(content), checksum=linear(digests))
    return completed(place, snapshot.id)


def test_volume_has_what_was_asked_for(place: VolumePlace) -> None:
    volume = make_volume(place)
    assert (volume.size_gib, volume.zone, volume.snapshot_id, volume.node) == (1, place.zone, "", "")
    assert volume.tags == TAGS


def test_same_token_makes_one_volume(place: VolumePlace) -> None:
    first = make_volume(place)
    again = place.driver.create_volume(size_gib=1, zone=place.zone, token="volume", tags=TAGS)
    assert again.id == first.id
    assert [volume.id for volume in place.driver.volumes()] == [first.id]


def test_same_token_for_another_volume_is_a_conflict(place: VolumePlace) -> None:
    make_volume(place)
    with pytest.raises(Conflict):
        place.driver.create_volume(size_gib=2, zone=place.zone, token="volume", tags=TAGS)
    assert len(place.driver.volumes()) == 1


def test_volume_of_a_snapshot_that_is_not_there_is_missing(place: VolumePlace) -> None:
    with pytest.raises(Missing):
        make_volume(place, snapshot_id="snap-00000000000000fff")


def test_fresh_volume_reads_zeros(place: VolumePlace) -> None:
    volume = attached(place)
    assert place.read(volume.id, 0) == ZEROS
    assert place.read(volume.id, 2047) == ZEROS


def test_attach_names_node_and_device(place: VolumePlace) -> None:
    volume = attached(place)
    assert volume.node == place.node
    assert volume.device


def test_attach_twice_is_no_error(place: VolumePlace) -> None:
    volume = attached(place)
    place.driver.attach(volume.id, place.node)
    assert settled(place, volume.id, VolumeState.IN_USE).node == place.node


def test_attach_to_a_second_node_is_a_conflict(place: VolumePlace) -> None:
    volume = attached(place)
    with pytest.raises(Conflict):
        place.driver.attach(volume.id, place.other_node)
    assert settled(place, volume.id, VolumeState.IN_USE).node == place.node


def test_attach_across_zones_is_refused(place: VolumePlace) -> None:
    if not place.other_zone:
        pytest.skip("this driver has one zone")
    made = place.driver.create_volume(size_gib=1, zone=place.other_zone, token="far", tags=TAGS)
    settled(place, made.id, VolumeState.AVAILABLE)
    with pytest.raises(Invalid):
        place.driver.attach(made.id, place.node)


def test_two_volumes_are_two_devices(place: VolumePlace) -> None:
    first, second = attached(place, "one"), attached(place, "two")
    assert first.device != second.device


def test_detach_and_attach_elsewhere_keeps_the_bytes(place: VolumePlace) -> None:
    volume = attached(place)
    place.write(volume.id, 5, block(1))
    place.driver.detach(volume.id, place.node)
    assert settled(place, volume.id, VolumeState.AVAILABLE).node == ""
    place.driver.attach(volume.id, place.other_node)
    assert settled(place, volume.id, VolumeState.IN_USE).node == place.other_node
    assert place.read(volume.id, 5) == block(1)


def test_detach_of_what_is_not_attached_is_no_error(place: VolumePlace) -> None:
    volume = make_volume(place)
    place.driver.detach(volume.id, place.node)
    assert settled(place, volume.id, VolumeState.AVAILABLE)


def test_detach_from_another_node_leaves_it(place: VolumePlace) -> None:
    volume = attached(place)
    place.driver.detach(volume.id, place.other_node)
    place.advance(10)
    assert settled(place, volume.id, VolumeState.IN_USE).node == place.node


def test_attached_volume_is_not_deleted(place: VolumePlace) -> None:
    volume = attached(place)
    with pytest.raises(Conflict):
        place.driver.delete_volume(volume.id)
    assert settled(place, volume.id, VolumeState.IN_USE)


def test_deleted_volume_is_gone_and_may_be_deleted_again(place: VolumePlace) -> None:
    volume = make_volume(place)
    place.driver.delete_volume(volume.id)
    place.driver.delete_volume(volume.id)
    wait_until_gone(place.driver.volumes, [volume.id], clock=place.clock, entropy=SeededEntropy(4), deadline_s=LONG_S)
    place.driver.delete_volume(volume.id)
    with pytest.raises(Missing):
        place.driver.attach(volume.id, place.node)


def test_snapshot_holds_the_moment(place: VolumePlace) -> None:
    volume = attached(place)
    place.write(volume.id, 3, block(1))
    snapshot = place.driver.snapshot(volume.id, token="snapshot", tags=TAGS)
    place.write(volume.id, 3, block(2))
    assert completed(place, snapshot.id).state is SnapshotState.COMPLETED
    assert place.driver.blocks().get(snapshot.id, 3) == block(1)
    copy = attached(place, "copy", snapshot.id)
    assert place.read(copy.id, 3) == block(1)
    assert place.read(volume.id, 3) == block(2)


def test_snapshot_says_whose_it_is(place: VolumePlace) -> None:
    volume = attached(place)
    before = place.clock.wall_ns()
    snapshot = snapshot_of(place, volume.id)
    assert (snapshot.volume_id, snapshot.size_gib, snapshot.progress) == (volume.id, 1, 100)
    assert snapshot.tags == TAGS
    assert abs(snapshot.started_at_ns - before) < 60e9


def test_same_token_makes_one_snapshot(place: VolumePlace) -> None:
    volume = attached(place)
    first = snapshot_of(place, volume.id)
    assert place.driver.snapshot(volume.id, token="snapshot", tags=TAGS).id == first.id
    assert len(place.driver.snapshots()) == 1


def test_same_token_for_another_snapshot_is_a_conflict(place: VolumePlace) -> None:
    first, second = attached(place, "one"), attached(place, "two")
    snapshot_of(place, first.id)
    with pytest.raises(Conflict):
        place.driver.snapshot(second.id, token="snapshot", tags=TAGS)


def test_snapshot_of_no_volume_is_missing(place: VolumePlace) -> None:
    with pytest.raises(Missing):
        place.driver.snapshot("vol-00000000000000fff", token="snapshot", tags=TAGS)


def test_volume_of_a_snapshot_is_its_own(place: VolumePlace) -> None:
    volume = attached(place)
    place.write(volume.id, 0, block(1))
    snapshot = snapshot_of(place, volume.id)
    copy = attached(place, "copy", snapshot.id)
    assert copy.snapshot_id == snapshot.id
    place.write(copy.id, 0, block(9))
    assert place.driver.blocks().get(snapshot.id, 0) == block(1)
    assert place.read(volume.id, 0) == block(1)


def test_deleting_a_snapshot_leaves_what_was_made_of_it(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    parent = direct(place, blocks, {1: block(1)})
    child = direct(place, blocks, {2: block(2)}, "child", parent.id)
    volume = attached(place, "copy", parent.id)
    place.driver.delete_snapshot(parent.id)
    place.driver.delete_snapshot(parent.id)
    assert place.driver.snapshots([parent.id]) == []
    assert place.read(volume.id, 1) == block(1)
    assert blocks.get(child.id, 1) == block(1)
    assert list(blocks.written(child.id)) == [1, 2]


def test_lists_by_id_and_tag(place: VolumePlace) -> None:
    first = make_volume(place, "one")
    second = place.driver.create_volume(size_gib=1, zone=place.zone, token="two", tags={"boxlink:dataset": "c*"})
    settled(place, second.id, VolumeState.AVAILABLE)
    driver = place.driver
    assert {volume.id for volume in driver.volumes()} == {first.id, second.id}
    assert [volume.id for volume in driver.volumes([first.id, "vol-00000000000000fff"])] == [first.id]
    assert [volume.id for volume in driver.volumes(tags={"boxlink:dataset": "c*"})] == [second.id]
    assert driver.volumes([first.id], {"boxlink:dataset": "c*"}) == []
    assert driver.volumes(tags={"boxlink:dataset": "covers", "boxlink:seq": "8"}) == []
    assert driver.snapshots(tags={"boxlink:dataset": "covers"}) == []


def test_tags_are_added(place: VolumePlace) -> None:
    volume = attached(place)
    snapshot = snapshot_of(place, volume.id)
    place.driver.tag(snapshot.id, {"boxlink:complete": "1", "boxlink:seq": "8"})
    place.driver.tag(volume.id, {"boxlink:role": "render"})
    [found] = place.driver.snapshots(tags={"boxlink:complete": "1"})
    assert found.tags == {**TAGS, "boxlink:complete": "1", "boxlink:seq": "8"}
    assert place.driver.volumes([volume.id])[0].tags == {**TAGS, "boxlink:role": "render"}
    with pytest.raises(Missing):
        place.driver.tag("snap-00000000000000fff", {"boxlink:complete": "1"})


def test_direct_snapshot_reads_as_it_was_written(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    content = {0: block(1), 7: ZEROS, 2047: block(3)}
    snapshot = direct(place, blocks, content)
    assert list(blocks.written(snapshot.id)) == [0, 7, 2047]
    assert {index: blocks.get(snapshot.id, index) for index in content} == content
    assert blocks.get(snapshot.id, 1) == ZEROS
    assert snapshot.tags == TAGS
    volume = attached(place, "copy", snapshot.id)
    assert [place.read(volume.id, index) for index in (0, 1, 2047)] == [block(1), ZEROS, block(3)]


def test_child_holds_the_parent_but_for_what_is_put(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    parent = direct(place, blocks, {1: block(1), 2: block(2), 3: block(3)})
    child = direct(place, blocks, {2: block(9), 3: ZEROS, 4: block(4)}, "child", parent.id)
    assert child.parent_id == parent.id
    assert [blocks.get(child.id, index) for index in (1, 2, 3, 4)] == [block(1), block(9), ZEROS, block(4)]
    assert [blocks.get(parent.id, index) for index in (1, 2, 3, 4)] == [block(1), block(2), block(3), ZEROS]
    assert list(blocks.changed(parent.id, child.id)) == [2, 3, 4]


def test_start_again_goes_on_with_the_same_snapshot(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    first = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    digests = {1: blocks.put(first.id, 1, block(1))}
    again = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    assert (again.id, again.state) == (first.id, SnapshotState.PENDING)
    digests |= {index: blocks.put(again.id, index, block(index)) for index in (1, 2)}
    blocks.complete(again.id, changed_count=2, checksum=linear(digests))
    assert completed(place, again.id)
    assert blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS).state is SnapshotState.COMPLETED
    with pytest.raises(Conflict):
        blocks.start(size_gib=2, parent_id="", token="direct", tags=TAGS)


def test_put_again_replaces(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    blocks.put(snapshot.id, 1, block(1))
    digest = blocks.put(snapshot.id, 1, memoryview(block(2)))
    assert digest == hashlib.sha256(block(2)).digest()
    blocks.complete(snapshot.id, changed_count=1, checksum=linear({1: digest}))
    completed(place, snapshot.id)
    assert blocks.get(snapshot.id, 1) == block(2)


def test_wrong_count_ends_in_error(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    digest = blocks.put(snapshot.id, 1, block(1))
    blocks.complete(snapshot.id, changed_count=2, checksum=linear({1: digest}))
    with pytest.raises(Corrupt):
        completed(place, snapshot.id)
    assert place.driver.snapshots([snapshot.id])[0].state is SnapshotState.ERROR


def test_wrong_checksum_ends_in_error(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    blocks.put(snapshot.id, 1, block(1))
    blocks.complete(snapshot.id, changed_count=1, checksum=linear({1: hashlib.sha256(block(2)).digest()}))
    with pytest.raises(Corrupt):
        completed(place, snapshot.id)


def test_completed_snapshot_takes_no_block(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    snapshot = direct(place, blocks, {1: block(1)})
    with pytest.raises(Conflict):
        blocks.put(snapshot.id, 2, block(2))
    with pytest.raises(Conflict):
        blocks.complete(snapshot.id, changed_count=1, checksum=linear({}))
    assert list(blocks.written(snapshot.id)) == [1]


def test_block_beyond_the_volume_is_refused(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token="direct", tags=TAGS)
    with pytest.raises(Invalid):
        blocks.put(snapshot.id, 2048, block(1))
    with pytest.raises(Invalid):
        blocks.put(snapshot.id, 0, b"short")
    blocks.complete(snapshot.id, changed_count=0, checksum=linear({}))
    completed(place, snapshot.id)
    with pytest.raises(Invalid):
        blocks.get(snapshot.id, 2048)


def test_parent_has_to_be_there(place: VolumePlace) -> None:
    with pytest.raises(Missing):
        place.driver.blocks().start(size_gib=1, parent_id="snap-00000000000000fff", token="direct", tags=TAGS)


def test_strangers_are_not_compared(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    one, two = direct(place, blocks, {1: block(1)}, "one"), direct(place, blocks, {1: block(1)}, "two")
    with pytest.raises(Invalid):
        list(blocks.changed(one.id, two.id))


def test_snapshots_of_a_volume_are_of_one_lineage(place: VolumePlace) -> None:
    blocks = place.driver.blocks()
    base = direct(place, blocks, {1: block(1), 2: block(2)})
    volume = attached(place, "copy", base.id)
    place.write(volume.id, 2, block(8))
    place.write(volume.id, 9, block(9))
    snapshot = snapshot_of(place, volume.id)
    assert list(blocks.changed(base.id, snapshot.id)) == [2, 9]
    assert list(blocks.written(snapshot.id)) == [1, 2, 9]
