"""What the stand-in is believed to have in common with AWS: the same tests on both (``make test-aws``)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.machine import Machine
from synclib.core.names import node_key
from synclib.errors import Conflict, Corrupt, Invalid, Missing
from synclib.store.open import open_store
from synclib.volume.base import BLOCK_BYTES, Snapshot, SnapshotState, Volume, VolumeState
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until
from tests.aws.account import PLACES, REAL_STORE, REAL_ZONE, Account, account
from tests.aws.requests import block
from tools.fleet.ec2_instances import instances, run_instance, terminate, wait_until_running
from tools.fleet.instance_request import Start, requests

LONG_S = 600.0
ZEROS = bytes(BLOCK_BYTES)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Account]:
    with account(request.param, tmp_path) as found:
        yield found


def token(place: Account, name: str) -> str:
    return f"{name}-{place.mark}"


def completed(place: Account, snapshot_id: str) -> Snapshot:
    [found] = wait_until(
        place.driver.snapshots,
        [snapshot_id],
        snapshot_is_completed,
        clock=place.clock,
        entropy=place.entropy,
        deadline_s=LONG_S,
    )
    return found


def settled(place: Account, volume_id: str, state: VolumeState) -> Volume:
    [found] = wait_until(
        place.driver.volumes,
        [volume_id],
        volume_is(state),
        clock=place.clock,
        entropy=place.entropy,
        deadline_s=LONG_S,
    )
    return found


def direct(place: Account, name: str, content: dict[int, bytes], parent_id: str = "") -> Snapshot:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id=parent_id, token=token(place, name), tags=place.tags)
    digests = [blocks.put(snapshot.id, index, data) for index, data in sorted(content.items())]
    checksum = hashlib.sha256(b"".join(digests)).digest()
    blocks.complete(snapshot.id, changed_count=len(content), checksum=checksum)
    return completed(place, snapshot.id)


def test_parent_and_child(place: Account) -> None:
    blocks = place.driver.blocks()
    parent = direct(place, "parent", {0: block(1), 9: block(9)})
    child = direct(place, "child", {9: ZEROS, 2047: block(2)}, parent.id)
    assert (child.tags, child.parent_id) == (place.tags, parent.id)
    assert list(blocks.written(child.id)) == [0, 9, 2047]
    assert list(blocks.changed(parent.id, child.id)) == [9, 2047]
    assert [blocks.get(child.id, index) for index in (0, 1, 9, 2047)] == [block(1), ZEROS, ZEROS, block(2)]
    assert blocks.get(parent.id, 9) == block(9)


def test_what_is_wrong_is_refused(place: Account) -> None:
    blocks = place.driver.blocks()
    snapshot = blocks.start(size_gib=1, parent_id="", token=token(place, "wrong"), tags=place.tags)
    with pytest.raises(Conflict):
        blocks.start(size_gib=2, parent_id="", token=token(place, "wrong"), tags=place.tags)
    with pytest.raises(Invalid):
        blocks.put(snapshot.id, 2048, block(1))
    blocks.put(snapshot.id, 0, block(1))
    assert blocks.start(size_gib=1, parent_id="", token=token(place, "wrong"), tags=place.tags).id == snapshot.id
    blocks.complete(snapshot.id, changed_count=1, checksum=hashlib.sha256(b"wrong").digest())
    with pytest.raises(Corrupt):
        completed(place, snapshot.id)
    with pytest.raises(Conflict):
        blocks.put(snapshot.id, 1, block(1))


def test_completed_snapshot_takes_no_block(place: Account) -> None:
    blocks = place.driver.blocks()
    snapshot = direct(place, "whole", {0: block(1)})
    with pytest.raises(Conflict):
        blocks.put(snapshot.id, 1, block(1))
    with pytest.raises(Conflict):
        blocks.complete(snapshot.id, changed_count=1, checksum=bytes(32))
    again = blocks.start(size_gib=1, parent_id="", token=token(place, "whole"), tags=place.tags)
    assert (again.id, again.state) == (snapshot.id, SnapshotState.COMPLETED)


def test_deleted_parent_leaves_the_child_whole(place: Account) -> None:
    parent = direct(place, "parent", {0: block(1)})
    child = direct(place, "child", {1: block(2)}, parent.id)
    place.driver.delete_snapshot(parent.id)
    assert [place.driver.blocks().get(child.id, index) for index in (0, 1)] == [block(1), block(2)]
    with pytest.raises(Missing):
        place.driver.blocks().start(size_gib=1, parent_id=parent.id, token=token(place, "late"), tags=place.tags)


def test_volume_of_a_snapshot_and_its_snapshot(place: Account) -> None:
    driver = place.driver
    base = direct(place, "base", {3: block(3)})
    made = driver.create_volume(
        size_gib=1, zone=place.zone, token=token(place, "volume"), tags=place.tags, snapshot_id=base.id
    )
    volume = settled(place, made.id, VolumeState.AVAILABLE)
    assert (volume.snapshot_id, volume.tags, volume.zone) == (base.id, place.tags, place.zone)
    snapshot = completed(place, driver.snapshot(volume.id, token=token(place, "of-volume"), tags=place.tags).id)
    assert driver.snapshot(volume.id, token=token(place, "of-volume"), tags=place.tags).id == snapshot.id
    assert driver.blocks().get(snapshot.id, 3) == block(3)
    assert list(driver.blocks().changed(base.id, snapshot.id)) == []


def test_attach_and_detach(place: Account) -> None:
    if not place.image:
        pytest.skip("BOXLINK_TEST_AWS_IMAGE names no image (AMI) for an instance")
    driver = place.driver
    request = {
        "ImageId": place.image,
        "InstanceType": place.kind,
        "MinCount": 1,
        "MaxCount": 1,
        "Placement": {"AvailabilityZone": place.zone},
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in place.tags.items()]}
            for kind in ("instance", "volume")
        ],
        "ClientToken": token(place, "instance"),
    }
    node = run_instance(place.ec2, [request], place.calls)
    assert run_instance(place.ec2, [request], place.calls) == node
    wait_until_running(place.ec2, [node], place.calls)
    made = driver.create_volume(size_gib=1, zone=place.zone, token=token(place, "volume"), tags=place.tags)
    settled(place, made.id, VolumeState.AVAILABLE)
    for _ in range(2):
        driver.attach(made.id, node)
    assert settled(place, made.id, VolumeState.IN_USE).node == node
    with pytest.raises(Conflict):
        driver.delete_volume(made.id)
    for _ in range(2):
        driver.detach(made.id, node)
    settled(place, made.id, VolumeState.AVAILABLE)
    driver.delete_volume(made.id)
    terminate(place.ec2, [node], place.calls)


def test_an_instance_as_launch_asks_for_it(place: Account, capsys: pytest.CaptureFixture[str]) -> None:
    """With the request of ``boxlink launch``, user-data and all. On an account with BOXLINK_TEST_AWS_STORE it must boot
    from there until it says in the store how it does."""
    if not place.image:
        pytest.skip("BOXLINK_TEST_AWS_IMAGE names no image (AMI) for an instance")
    is_booting = bool(REAL_STORE) and place.zone == REAL_ZONE
    profile = os.environ.get("BOXLINK_TEST_AWS_PROFILE", "boxlink-node") if is_booting else ""
    node = f"test-{place.mark}"
    release = os.environ.get("BOXLINK_TEST_AWS_RELEASE", "fleet")
    start = Start(node, "render", REAL_STORE if is_booting else "s3://covers/fleet", release)
    [request] = requests(Machine(place.image, (place.kind,), profile=profile), start)
    specifications = request["TagSpecifications"]
    assert isinstance(specifications, list)
    for specification in specifications:
        specification["Tags"] += [{"Key": key, "Value": value} for key, value in place.tags.items()]
    request["Placement"] = {"AvailabilityZone": place.zone}
    asked = place.clock.monotonic()
    instance = run_instance(place.ec2, [request], place.calls)
    assert run_instance(place.ec2, [request], place.calls) == instance, "the same request is the same instance"
    wait_until_running(place.ec2, [instance], place.calls)
    running_s = place.clock.monotonic() - asked
    [seen] = instances(place.ec2, (), {"boxlink:node": node, **place.tags}, place.calls)
    assert (seen.id, seen.tags["boxlink:release"]) == (instance, release)
    if is_booting:
        booted_s = _said(place, node) - asked
        with capsys.disabled():
            print(f"\n{node} ran after {running_s:.1f} s, and said in the store how it does after {booted_s:.1f} s")
    terminate(place.ec2, [instance], place.calls)


def _said(place: Account, node: str) -> float:
    """When a node's sync said how it does."""
    store, _ = open_store(REAL_STORE, {"endpoint": None, "region": REAL_ZONE[:-1], "profile": None})
    stop = place.clock.monotonic() + LONG_S
    while place.clock.monotonic() < stop:
        with contextlib.suppress(Missing):
            store.get(node_key(node), size_max=1 << 20)
            return place.clock.monotonic()
        place.clock.sleep(0.5)
    raise AssertionError(f"it has said nothing in {LONG_S:.0f} s: see boxlink logs {node}, and its console")
