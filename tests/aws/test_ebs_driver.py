"""The EBS driver where AWS is slow, busy, throttling, forgetful or wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.errors import BoxlinkError, Conflict, Corrupt, Full, Invalid, Missing, Unavailable, Unsupported
from synclib.volume.base import BLOCK_BYTES, SnapshotState, Volume, VolumeState
from synclib.volume.ebs import EbsDriver
from synclib.volume.ebs_answers import TOKEN_TAG
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until
from tests.aws.clients import client
from tests.aws.refusal import Refused
from tests.aws.requests import block, completed, run
from tests.aws.standin import Standin

ZONE = "eu-central-1a"
THROTTLED = Refused("RequestLimitExceeded", "Request limit exceeded.", status=503)
BROKEN = Refused("InternalError", "An internal error has occurred", status=500)
FULL_THROTTLE = Refused("RequestThrottledException", "slow down", reason="ACCOUNT_THROTTLED")


@pytest.fixture
def driver(standin: Standin, ec2: Any, ebs: Any) -> EbsDriver:
    return EbsDriver(ec2, ebs, standin.clock, SeededEntropy(1))


@pytest.fixture
def node(standin: Standin, ec2: Any) -> str:
    instance_id = run(ec2, ZONE)
    standin.clock.advance(60)
    return instance_id


def make(driver: EbsDriver, token: str = "one", zone: str = ZONE) -> Volume:
    return driver.create_volume(size_gib=1, zone=zone, token=token, tags={"role": "covers"})


def wait(
    standin: Standin, driver: EbsDriver, ids: list[str], state: VolumeState, deadline_s: float = 60
) -> list[Volume]:
    return wait_until(
        driver.volumes,
        ids,
        volume_is(state),
        clock=standin.clock,
        entropy=SeededEntropy(2),
        deadline_s=deadline_s,
    )


def kinds(standin: Standin) -> list[str]:
    return [resource.kind for resource in standin.resources()]


@pytest.mark.parametrize("refusal", [THROTTLED, BROKEN])
def test_tries_again_until_it_is_answered(standin: Standin, driver: EbsDriver, refusal: Refused) -> None:
    standin.script.fail("CreateVolume", refusal, times=4)
    make(driver)
    assert standin.requests["CreateVolume"] == 5
    assert kinds(standin) == ["volume"]


def test_gives_up_at_the_deadline(standin: Standin, driver: EbsDriver) -> None:
    standin.script.fail("DescribeVolumes", THROTTLED, times=1000)
    began = standin.clock.monotonic()
    with pytest.raises(Unavailable):
        driver.volumes()
    assert 60 < standin.clock.monotonic() - began <= 120
    assert standin.requests["DescribeVolumes"] < 100


@pytest.mark.parametrize(
    "operation", ["CreateVolume", "CreateSnapshot", "AttachVolume", "DetachVolume", "DeleteVolume"]
)
def test_lost_answer_makes_nothing_twice(standin: Standin, driver: EbsDriver, node: str, operation: str) -> None:
    standin.script.lose_answer(operation)
    volume = make(driver)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    driver.attach(volume.id, node)
    wait(standin, driver, [volume.id], VolumeState.IN_USE)
    driver.snapshot(volume.id, token="s", tags={})
    driver.detach(volume.id, node)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    assert kinds(standin) == ["instance", "snapshot", "volume"]
    driver.delete_volume(volume.id)
    standin.clock.advance(60)
    assert kinds(standin) == ["instance", "snapshot"]


def test_lost_answer_of_a_snapshot_that_is_seen_late(standin: Standin, driver: EbsDriver) -> None:
    volume = make(driver)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    standin.clock.advance(10)
    standin.script.hidden_s = 8
    standin.script.lose_answer("CreateSnapshot")
    snapshot = driver.snapshot(volume.id, token="s", tags={})
    assert [resource.id for resource in standin.resources() if resource.kind == "snapshot"] == [snapshot.id]
    assert standin.requests["CreateSnapshot"] == 1


def test_a_snapshot_that_failed_is_made_again_under_its_token(standin: Standin, driver: EbsDriver) -> None:
    volume = make(driver)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    failed = driver.snapshot(volume.id, token="s", tags={})
    standin.snapshots.records[failed.id].status.set("error")
    standin.clock.advance(60)
    again = driver.snapshot(volume.id, token="s", tags={})
    assert again.id != failed.id
    wait_until(
        driver.snapshots,
        [again.id],
        snapshot_is_completed,
        clock=standin.clock,
        entropy=SeededEntropy(2),
        deadline_s=60,
    )
    assert driver.snapshot(volume.id, token="s", tags={}).id == again.id
    assert kinds(standin) == ["snapshot", "volume"], "the failed one is not paid for on and on"


def test_snapshot_rate_of_a_volume_is_waited_for(standin: Standin, driver: EbsDriver) -> None:
    volume = make(driver)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    first, second = (driver.snapshot(volume.id, token=token, tags={}) for token in "ab")
    assert first.id != second.id


def test_new_volume_is_attached_though_it_is_not_seen_yet(standin: Standin, driver: EbsDriver, node: str) -> None:
    standin.script.hidden_s = 6
    standin.delays.volume_create_s = 0
    volume = make(driver)
    driver.tag(volume.id, {"seq": "7"})
    driver.attach(volume.id, node)
    assert wait(standin, driver, [volume.id], VolumeState.IN_USE)[0].tags == {"role": "covers", "seq": "7"}


def test_what_was_never_there_is_missing_at_once(standin: Standin, driver: EbsDriver, node: str) -> None:
    with pytest.raises(Missing):
        driver.attach("vol-00000000000000fff", node)
    assert standin.requests["DescribeVolumes"] == 1


def test_one_look_for_many(standin: Standin, driver: EbsDriver) -> None:
    ids = [make(driver, str(number)).id for number in range(20)]
    looks = standin.requests["DescribeVolumes"]
    found = wait(standin, driver, ids, VolumeState.AVAILABLE)
    assert [volume.id for volume in found] == ids
    assert standin.requests["DescribeVolumes"] - looks <= 5


def test_many_ids_and_short_pages(standin: Standin, driver: EbsDriver) -> None:
    ids = [make(driver, str(number)).id for number in range(7)]
    standin.limits.describe_page = 2
    gone = [f"vol-{number:017x}" for number in range(1000, 1400)]
    found = driver.volumes(gone[:300] + ids + gone[300:])
    assert sorted(volume.id for volume in found) == ids


def test_wait_ends_with_a_reason(standin: Standin, driver: EbsDriver) -> None:
    volume = make(driver)
    with pytest.raises(Unavailable, match=volume.id):
        wait(standin, driver, [volume.id], VolumeState.IN_USE, deadline_s=5)
    with pytest.raises(Missing, match="vol-00000000000000fff"):
        wait(standin, driver, [volume.id, "vol-00000000000000fff"], VolumeState.AVAILABLE, deadline_s=5)
    with standin.locked():
        standin.volumes.records[volume.id].status.set("error")
    with pytest.raises(Conflict, match="has failed"):
        wait(standin, driver, [volume.id], VolumeState.AVAILABLE, deadline_s=5)


def test_busy_detach_is_said(standin: Standin, driver: EbsDriver, node: str) -> None:
    volume = make(driver)
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
    driver.attach(volume.id, node)
    wait(standin, driver, [volume.id], VolumeState.IN_USE)
    standin.script.busy_volumes.add(volume.id)
    driver.detach(volume.id, node)
    driver.detach(volume.id, node)
    assert driver.volumes([volume.id])[0].state is VolumeState.BUSY
    with pytest.raises(Conflict, match="busy"):
        driver.attach(volume.id, node)
    standin.script.busy_volumes.clear()
    wait(standin, driver, [volume.id], VolumeState.AVAILABLE)


def test_devices_run_out(standin: Standin, driver: EbsDriver, node: str) -> None:
    for number in range(12):
        volume = make(driver, str(number))
        wait(standin, driver, [volume.id], VolumeState.AVAILABLE)
        if number == 11:
            with pytest.raises(Full):
                driver.attach(volume.id, node)
        else:
            driver.attach(volume.id, node)
    assert len({volume.device for volume in driver.volumes() if volume.device}) == 11


@pytest.mark.parametrize(
    ("call", "kind", "word"),
    [
        (lambda driver: make(driver, zone="eu-central-1b"), Full, "another zone"),
        (lambda driver: make(driver, zone="eu-central-1z"), Missing, "region"),
        (lambda driver: driver.attach("nonsense", "i-00000000000000001"), Missing, "deleted"),
        (lambda driver: driver.tag("nonsense", {"a": "b"}), Invalid, "will not help"),
    ],
)
def test_refusals_say_what_to_do(
    standin: Standin, driver: EbsDriver, call: Callable[[EbsDriver], object], kind: type[BoxlinkError], word: str
) -> None:
    standin.script.exhausted.add("eu-central-1b")
    with pytest.raises(kind) as caught:
        call(driver)
    assert word in caught.value.hint


def test_unknown_credentials_are_invalid(standin: Standin) -> None:
    who = standin.identity("nobody", {"Version": "2012-10-17", "Statement": []})
    driver = EbsDriver(client(standin, "ec2", who), client(standin, "ebs", who), standin.clock, SeededEntropy(1))
    with pytest.raises(Invalid, match="UnauthorizedOperation") as caught:
        driver.volumes()
    assert "docs/iam.md" in caught.value.hint
    with pytest.raises(Invalid, match="AccessDeniedException"):
        driver.blocks().start(size_gib=1, parent_id="", token="t", tags={})


def test_dead_endpoint_is_unavailable(standin: Standin, ebs: Any) -> None:
    standin.endpoint = "http://127.0.0.1:9"
    driver = EbsDriver(client(standin, "ec2"), ebs, standin.clock, SeededEntropy(1))
    with pytest.raises(Unavailable, match="did not answer"):
        driver.volumes()


def test_device_is_found_by_the_volumes_serial(standin: Standin, ec2: Any, ebs: Any, tmp_path: Path) -> None:
    driver = EbsDriver(ec2, ebs, standin.clock, SeededEntropy(1), by_id=tmp_path)
    volume = make(driver)
    with pytest.raises(Unavailable):
        driver.device(volume)
    link = tmp_path / f"nvme-Amazon_Elastic_Block_Store_{volume.id.replace('-', '')}"
    link.touch()
    assert driver.device(volume) == link


def test_own_tag_is_there_but_not_shown(standin: Standin, driver: EbsDriver) -> None:
    assert make(driver).tags == {"role": "covers"}
    assert standin.resources()[0].tags == {"role": "covers", TOKEN_TAG: "one"}
    long_token = make(driver, "x" * 300)
    assert make(driver, "x" * 300).id == long_token.id


def put_all(driver: EbsDriver, snapshot_id: str, count: int) -> bytes:
    """Put blocks from many threads; the checksum of all."""
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda index: driver.blocks().put(snapshot_id, index, block(index)), range(count)))
    return hashlib.sha256(b"".join(digests)).digest()


def finished(standin: Standin, driver: EbsDriver, snapshot_id: str) -> None:
    wait_until(
        driver.snapshots,
        [snapshot_id],
        snapshot_is_completed,
        clock=standin.clock,
        entropy=SeededEntropy(3),
        deadline_s=60,
    )


def start(driver: EbsDriver, token: str = "one") -> str:
    return driver.blocks().start(size_gib=1, parent_id="", token=token, tags={}).id


def test_puts_are_paced_within_the_rate(standin: Standin, driver: EbsDriver) -> None:
    """The service's bucket allows a burst of a second's worth; the pace needs none of it."""
    snapshot_id = start(driver)
    began = standin.clock.monotonic()
    checksum = put_all(driver, snapshot_id, 100)
    assert 99 / 1000 <= standin.clock.monotonic() - began < 0.2
    assert standin.requests["PutSnapshotBlock"] == 100
    driver.blocks().complete(snapshot_id, changed_count=100, checksum=checksum)
    finished(standin, driver, snapshot_id)


def test_throttled_puts_come_through(standin: Standin, driver: EbsDriver) -> None:
    standin.limits.puts_per_s = 20
    snapshot_id = start(driver)
    checksum = put_all(driver, snapshot_id, 60)
    assert standin.requests["PutSnapshotBlock"] > 60
    driver.blocks().complete(snapshot_id, changed_count=60, checksum=checksum)
    finished(standin, driver, snapshot_id)


def test_blocks_come_through_all_that_goes_wrong(standin: Standin, driver: EbsDriver) -> None:
    standin.script.hidden_s = 40
    standin.script.fail("StartSnapshot", FULL_THROTTLE, times=2)
    standin.script.lose_answer("StartSnapshot")
    standin.script.lose_answer("PutSnapshotBlock")
    standin.script.lose_answer("CompleteSnapshot")
    conflict = Refused("ValidationException", "another write", reason="CONFLICTING_BLOCK_UPDATE")
    standin.script.fail("PutSnapshotBlock", conflict)
    snapshot_id = start(driver)
    digest = driver.blocks().put(snapshot_id, 5, block(5))
    driver.blocks().complete(snapshot_id, changed_count=1, checksum=hashlib.sha256(digest).digest())
    finished(standin, driver, snapshot_id)
    assert kinds(standin) == ["snapshot"]
    assert driver.blocks().get(snapshot_id, 5) == block(5)


def test_complete_that_was_answered_is_not_taken_twice(standin: Standin, driver: EbsDriver) -> None:
    snapshot_id = start(driver)
    driver.blocks().complete(snapshot_id, changed_count=0, checksum=hashlib.sha256().digest())
    with pytest.raises(Conflict):
        driver.blocks().complete(snapshot_id, changed_count=0, checksum=hashlib.sha256().digest())


def test_service_that_holds_something_else_is_corrupt(driver: EbsDriver, ebs: Any) -> None:
    def lie(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Checksum"] = "A" * 44

    snapshot_id = start(driver)
    ebs.meta.events.register("after-call.ebs.PutSnapshotBlock", lie)
    with pytest.raises(Corrupt, match="something else"):
        driver.blocks().put(snapshot_id, 0, block(0))


def test_too_many_pending_is_full(standin: Standin, driver: EbsDriver) -> None:
    standin.limits.pending_snapshots = 1
    start(driver)
    with pytest.raises(Full, match="ConcurrentLimitExceeded"):
        start(driver, "two")


@pytest.fixture
def spread(standin: Standin, ebs: Any) -> str:
    """A snapshot with blocks 0, 10, 20, … 240, listed in short pages, the first of them empty."""
    snapshot_id = completed(standin, ebs, {index: block(index) for index in range(0, 250, 10)})
    standin.limits.blocks_page = 4
    standin.script.is_empty_page_first = True
    return snapshot_id


def test_list_over_empty_and_short_pages(standin: Standin, driver: EbsDriver, spread: str) -> None:
    assert list(driver.blocks().written(spread)) == list(range(0, 250, 10))


def test_list_outlives_its_page_token(standin: Standin, driver: EbsDriver, spread: str) -> None:
    found: list[int] = []
    for index in driver.blocks().written(spread):
        if index in (50, 120):
            standin.clock.advance(3601)
        found.append(index)
    assert found == list(range(0, 250, 10))


def test_reads_outlive_their_block_tokens(standin: Standin, driver: EbsDriver, spread: str) -> None:
    blocks = driver.blocks()
    assert blocks.get(spread, 10) == block(10)
    standin.ebs_direct.tokens.end_all()
    assert blocks.get(spread, 10) == block(10)
    standin.clock.advance(8 * 86_400)
    assert [blocks.get(spread, index) for index in (20, 21)] == [block(20), bytes(BLOCK_BYTES)]


def test_tokens_of_neighbours_come_with_one_list(standin: Standin, driver: EbsDriver, ebs: Any) -> None:
    snapshot_id = completed(standin, ebs, {index: block(index) for index in range(30)})
    for index in range(60):
        driver.blocks().get(snapshot_id, index)
    assert standin.requests["ListSnapshotBlocks"] == 1
    assert standin.requests["GetSnapshotBlock"] == 30


def test_flipped_block_is_corrupt(standin: Standin, driver: EbsDriver, spread: str) -> None:
    standin.script.flipped_blocks.add((spread, 10))
    with pytest.raises(Corrupt):
        driver.blocks().get(spread, 10)
    assert standin.requests["GetSnapshotBlock"] == 4
    standin.script.flipped_blocks.clear()
    assert driver.blocks().get(spread, 10) == block(10)


def test_reads_of_what_is_not_there(standin: Standin, driver: EbsDriver) -> None:
    with pytest.raises(Missing):
        driver.blocks().get("snap-00000000000000fff", 0)
    with pytest.raises(Missing):
        list(driver.blocks().written("snap-00000000000000fff"))
    with pytest.raises(Invalid):
        driver.blocks().get(start(driver), 0)


def test_abandoned_snapshot_is_in_error_and_a_new_token_begins_again(standin: Standin, driver: EbsDriver) -> None:
    snapshot_id = start(driver)
    standin.clock.advance(25 * 3600)
    assert driver.blocks().start(size_gib=1, parent_id="", token="one", tags={}).state is SnapshotState.ERROR
    with pytest.raises(Conflict):
        driver.blocks().put(snapshot_id, 0, block(0))
    assert start(driver, "two") != snapshot_id


@pytest.mark.parametrize(
    "harm",
    [
        {"BlockSize": 512},
        {"VolumeSize": None},
        {"Blocks": [{"BlockIndex": 5, "BlockToken": "a"}, {"BlockIndex": 5, "BlockToken": "b"}]},
        {"Blocks": [{"BlockIndex": "5", "BlockToken": "a"}]},
        {"Blocks": [{"BlockToken": "a"}]},
        {"Blocks": [{"BlockIndex": 1 << 40, "BlockToken": "a"}]},
        {"Blocks": [], "NextToken": "again"},
    ],
)
def test_list_that_cannot_be_ends_with_an_error(driver: EbsDriver, ebs: Any, spread: str, harm: dict[str, Any]) -> None:
    ebs.meta.events.register("after-call.ebs.ListSnapshotBlocks", lambda parsed, **_: parsed.update(harm))
    with pytest.raises((Unsupported, Unavailable)):
        list(driver.blocks().written(spread))


@pytest.mark.parametrize(
    ("name", "value"), [("SnapshotId", "../../etc"), ("State", "melted"), ("StartTime", None), ("SnapshotId", None)]
)
def test_snapshot_that_cannot_be_is_unsupported(
    driver: EbsDriver, ec2: Any, spread: str, name: str, value: Any
) -> None:
    def harm(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Snapshots"][0][name] = value

    ec2.meta.events.register("after-call.ec2.DescribeSnapshots", harm)
    with pytest.raises(Unsupported):
        driver.snapshots()


class _Trickle:
    """A body that comes a byte at a time."""

    def __init__(self, standin: Standin) -> None:
        self._standin = standin
        self.reads = 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        self._standin.clock.advance(1)
        return b"x"

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def trickling(standin: Standin, ebs: Any, spread: str) -> tuple[str, list[_Trickle]]:
    """Every block comes too slowly."""
    bodies: list[_Trickle] = []

    def slow(parsed: dict[str, Any], **_: Any) -> None:
        bodies.append(_Trickle(standin))
        parsed["BlockData"] = bodies[-1]

    ebs.meta.events.register("after-call.ebs.GetSnapshotBlock", slow)
    return spread, bodies


def test_slow_body_ends(driver: EbsDriver, trickling: tuple[str, list[_Trickle]]) -> None:
    spread, bodies = trickling
    with pytest.raises(Unavailable, match="too long"):
        driver.blocks().get(spread, 10)
    assert all(body.reads < 100 for body in bodies)
