"""The stand-in refuses what EBS direct refuses, and the usual mock accepts."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from synclib.volume.base import BLOCK_BYTES
from tests.aws.block_tokens import BLOCK_TOKEN_S, PAGE_TOKEN_S
from tests.aws.clients import client
from tests.aws.requests import base64_digest, block, completed, put, refused, state_of
from tests.aws.standin import Standin

GONE = "snap-00000000000000fff"


def test_block_size_and_pending(ec2: Any, ebs: Any) -> None:
    started = ebs.start_snapshot(VolumeSize=1, Description="covers", Tags=[{"Key": "role", "Value": "covers"}])
    assert (started["BlockSize"], started["Status"]) == (524288, "pending")
    [shown] = ec2.describe_snapshots(SnapshotIds=[started["SnapshotId"]])["Snapshots"]
    assert (shown["State"], shown["Description"], shown["VolumeSize"]) == ("pending", "covers", 1)
    assert shown["Tags"] == [{"Key": "role", "Value": "covers"}]


def test_completion_takes_its_time(standin: Standin, ec2: Any, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, snapshot_id, 0, block(1))
    assert ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=1)["Status"] == "pending"
    assert state_of(ec2, snapshot_id) == "pending"
    with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
        ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
    standin.clock.advance(standin.delays.complete_s)
    assert state_of(ec2, snapshot_id) == "completed"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"Checksum": base64_digest(b"other")}, "INVALID_BLOCK"),
        ({"DataLength": BLOCK_BYTES - 1}, "INVALID_BLOCK"),
        ({"BlockData": b"short", "Checksum": base64_digest(b"short")}, "INVALID_BLOCK"),
        ({"BlockIndex": 2048}, "INVALID_BLOCK"),
        ({"ChecksumAlgorithm": "MD5"}, "INVALID_PARAMETER_VALUE"),
        ({"Progress": 101}, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_wrong_block_is_refused(ebs: Any, changed: dict[str, Any], reason: str) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("ValidationException", reason):
        put(ebs, snapshot_id, 0, block(1), **changed)
    put(ebs, snapshot_id, 2047, block(1))


def test_no_put_after_completion(standin: Standin, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
    for _ in ("while it is completing", "when it is completed"):
        with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
            put(ebs, snapshot_id, 0, block(1))
        with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
            ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0)
        standin.clock.advance(60)


def test_wrong_count_is_an_error(standin: Standin, ec2: Any, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    put(ebs, snapshot_id, 0, block(1))
    put(ebs, snapshot_id, 0, block(2))
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=2)
    standin.clock.advance(60)
    assert state_of(ec2, snapshot_id) == "error"
    with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
        ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=snapshot_id)


@pytest.mark.parametrize(("order", "state"), [((3, 8), "completed"), ((8, 3), "error")])
def test_linear_checksum_is_by_index(standin: Standin, ec2: Any, ebs: Any, order: tuple[int, int], state: str) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    for index in (8, 3):
        put(ebs, snapshot_id, index, block(index))
    digests = b"".join(hashlib.sha256(block(index)).digest() for index in order)
    ebs.complete_snapshot(
        SnapshotId=snapshot_id,
        ChangedBlocksCount=2,
        Checksum=base64_digest(digests),
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )
    standin.clock.advance(60)
    assert state_of(ec2, snapshot_id) == state


def test_checksum_needs_its_method(ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("ValidationException", "INVALID_PARAMETER_VALUE"):
        ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=0, Checksum=base64_digest(b""))


def test_left_alone_it_fails(standin: Standin, ec2: Any, ebs: Any) -> None:
    snapshot_id = ebs.start_snapshot(VolumeSize=1, Timeout=10)["SnapshotId"]
    standin.clock.advance(9 * 60)
    put(ebs, snapshot_id, 0, block(1))
    standin.clock.advance(9 * 60)
    assert state_of(ec2, snapshot_id) == "pending"
    standin.clock.advance(2 * 60)
    assert state_of(ec2, snapshot_id) == "error"
    with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
        put(ebs, snapshot_id, 0, block(1))


def test_child_reads_through_and_lists_all(standin: Standin, ebs: Any) -> None:
    parent = completed(standin, ebs, {1: block(1), 2: block(2)})
    child = completed(standin, ebs, {2: block(9), 5: block(5)}, parent)
    rows = ebs.list_snapshot_blocks(SnapshotId=child)["Blocks"]
    read = {row["BlockIndex"]: ebs.get_snapshot_block(SnapshotId=child, **row)["BlockData"].read() for row in rows}
    assert read == {1: block(1), 2: block(9), 5: block(5)}


def test_changed_blocks_name_those_that_only_the_second_has(standin: Standin, ebs: Any) -> None:
    parent = completed(standin, ebs, {1: block(1), 2: block(2)})
    child = completed(standin, ebs, {2: block(9), 5: block(5)}, parent)
    rows = ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=child)["ChangedBlocks"]
    assert [(row["BlockIndex"], "FirstBlockToken" in row) for row in rows] == [(2, True), (5, False)]
    with refused("ValidationException", "UNRELATED_SNAPSHOTS"):
        ebs.list_changed_blocks(FirstSnapshotId=completed(standin, ebs, {}), SecondSnapshotId=child)


@pytest.mark.parametrize("size_gib", [0, 65_537])
def test_volume_size_has_bounds(standin: Standin, size_gib: int) -> None:
    with refused("ValidationException", "INVALID_VOLUME_SIZE"):
        client(standin, "ebs", parameter_validation=False).start_snapshot(VolumeSize=size_gib)


def test_parent_rules(standin: Standin, ebs: Any) -> None:
    parent = completed(standin, ebs, {}, size_gib=2)
    with refused("ValidationException", "INVALID_PARAMETER_VALUE"):
        ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=parent, Encrypted=True)
    with refused("ValidationException", "INVALID_VOLUME_SIZE"):
        ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent)
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=GONE)
    pending = ebs.start_snapshot(VolumeSize=2)["SnapshotId"]
    with refused("ValidationException", "INVALID_SNAPSHOT_ID"):
        ebs.start_snapshot(VolumeSize=2, ParentSnapshotId=pending)


def test_client_token_is_of_one_request(standin: Standin, ebs: Any) -> None:
    first = ebs.start_snapshot(VolumeSize=1, ClientToken="one")["SnapshotId"]
    assert ebs.start_snapshot(VolumeSize=1, ClientToken="one")["SnapshotId"] == first
    with refused("ConflictException"):
        ebs.start_snapshot(VolumeSize=2, ClientToken="one")
    assert [resource.id for resource in standin.resources()] == [first]


def test_what_is_not_there_is_not_found(standin: Standin, ebs: Any) -> None:
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        ebs.list_snapshot_blocks(SnapshotId=GONE)
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        put(ebs, GONE, 0, block(1))
    snapshot_id = completed(standin, ebs, {1: block(1)})
    token = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)["Blocks"][0]["BlockToken"]
    with refused("ValidationException", "INVALID_BLOCK_TOKEN"):
        ebs.get_snapshot_block(SnapshotId=snapshot_id, BlockIndex=2, BlockToken=token)


def test_block_token_is_needed_and_ends(standin: Standin, ebs: Any) -> None:
    one, two = (completed(standin, ebs, {1: block(1)}) for _ in range(2))
    token = ebs.list_snapshot_blocks(SnapshotId=one)["Blocks"][0]["BlockToken"]
    for wrong in (base64.b64encode(b"made up").decode(), token[:-4] + "AAAA"):
        with refused("ValidationException", "INVALID_BLOCK_TOKEN"):
            ebs.get_snapshot_block(SnapshotId=one, BlockIndex=1, BlockToken=wrong)
    with refused("ValidationException", "INVALID_BLOCK_TOKEN"):
        ebs.get_snapshot_block(SnapshotId=two, BlockIndex=1, BlockToken=token)
    standin.clock.advance(BLOCK_TOKEN_S)
    assert ebs.get_snapshot_block(SnapshotId=one, BlockIndex=1, BlockToken=token)["DataLength"] == BLOCK_BYTES
    standin.clock.advance(1)
    with refused("ValidationException", "INVALID_BLOCK_TOKEN"):
        ebs.get_snapshot_block(SnapshotId=one, BlockIndex=1, BlockToken=token)


def test_pages_and_their_tokens(standin: Standin, ebs: Any) -> None:
    standin.limits.blocks_page = 2
    standin.script.is_empty_page_first = True
    snapshot_id = completed(standin, ebs, {index: block(1) for index in range(5)})
    pages, more = [], {}
    while True:
        answer = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, **more)
        pages.append([row["BlockIndex"] for row in answer["Blocks"]])
        if "NextToken" not in answer:
            break
        more = {"NextToken": answer["NextToken"]}
    assert pages == [[], [0, 1], [2, 3], [4]]
    other = completed(standin, ebs, {0: block(1)})
    with refused("ValidationException", "INVALID_PAGE_TOKEN"):
        ebs.list_snapshot_blocks(SnapshotId=other, **more)
    standin.clock.advance(PAGE_TOKEN_S + 1)
    with refused("ValidationException", "INVALID_PAGE_TOKEN"):
        ebs.list_snapshot_blocks(SnapshotId=snapshot_id, **more)
    from_there = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, StartingBlockIndex=3)
    assert from_there["Blocks"] == []
    rest = ebs.list_snapshot_blocks(SnapshotId=snapshot_id, NextToken=from_there["NextToken"], StartingBlockIndex=0)
    assert [row["BlockIndex"] for row in rest["Blocks"]] == [3, 4]


def test_max_results_has_bounds(standin: Standin, ebs: Any) -> None:
    snapshot_id = completed(standin, ebs, {})
    unchecked = client(standin, "ebs", parameter_validation=False)
    for wrong in (99, 10_001):
        with refused("ValidationException", "INVALID_PARAMETER_VALUE"):
            unchecked.list_snapshot_blocks(SnapshotId=snapshot_id, MaxResults=wrong)


def test_puts_of_a_snapshot_have_a_rate(standin: Standin, ebs: Any) -> None:
    standin.limits.puts_per_s = 4
    one, two = (ebs.start_snapshot(VolumeSize=1)["SnapshotId"] for _ in range(2))
    for index in range(4):
        put(ebs, one, index, block(1))
    with refused("RequestThrottledException", "RESOURCE_LEVEL_THROTTLE"):
        put(ebs, one, 4, block(1))
    put(ebs, two, 4, block(1))
    standin.clock.advance(0.25)
    put(ebs, one, 4, block(1))
    with refused("RequestThrottledException", "RESOURCE_LEVEL_THROTTLE"):
        put(ebs, one, 5, block(1))


def test_pending_snapshots_have_a_limit(standin: Standin, ebs: Any) -> None:
    standin.limits.pending_snapshots = 3
    for _ in range(3):
        ebs.start_snapshot(VolumeSize=1)
    with refused("ConcurrentLimitExceededException"):
        ebs.start_snapshot(VolumeSize=1)


def test_tags_have_bounds(standin: Standin, ebs: Any) -> None:
    for wrong in ([{"Key": "aws:x", "Value": ""}], [{"Key": str(n), "Value": ""} for n in range(51)]):
        with refused("ValidationException", "INVALID_TAG"):
            ebs.start_snapshot(VolumeSize=1, Tags=wrong)
    assert standin.resources() == []
