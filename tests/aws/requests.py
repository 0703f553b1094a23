"""Requests as tests write them against the stand-in, and what it must answer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError

from synclib.volume.base import BLOCK_BYTES
from tests.aws.standin import Standin

IMAGE = "ami-00000000000000001"
KIND = "c7g.large"


@contextmanager
def refused(code: str, reason: str = "") -> Iterator[None]:
    """Exactly this refusal comes out of the block."""
    with pytest.raises(ClientError) as caught:
        yield
    answer = caught.value.response
    assert (answer["Error"]["Code"], answer.get("Reason", "")) == (code, reason), answer


def block(seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "big")).digest() * (BLOCK_BYTES // 32)


def base64_digest(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def put(ebs: Any, snapshot_id: str, index: int, data: bytes, **changed: Any) -> None:
    request = {
        "SnapshotId": snapshot_id,
        "BlockIndex": index,
        "BlockData": data,
        "DataLength": len(data),
        "Checksum": base64_digest(data),
        "ChecksumAlgorithm": "SHA256",
    }
    ebs.put_snapshot_block(**{**request, **changed})


def completed(standin: Standin, ebs: Any, content: Mapping[int, bytes], parent_id: str = "", size_gib: int = 1) -> str:
    """A completed snapshot of these blocks."""
    extra = {"ParentSnapshotId": parent_id} if parent_id else {}
    snapshot_id = str(ebs.start_snapshot(VolumeSize=size_gib, **extra)["SnapshotId"])
    for index, data in content.items():
        put(ebs, snapshot_id, index, data)
    ebs.complete_snapshot(SnapshotId=snapshot_id, ChangedBlocksCount=len(content))
    standin.clock.advance(standin.delays.complete_s)
    return snapshot_id


def state_of(ec2: Any, resource_id: str) -> str:
    """The state of a volume, snapshot or instance as EC2 tells it."""
    if resource_id.startswith("vol-"):
        return str(ec2.describe_volumes(VolumeIds=[resource_id])["Volumes"][0]["State"])
    if resource_id.startswith("snap-"):
        return str(ec2.describe_snapshots(SnapshotIds=[resource_id])["Snapshots"][0]["State"])
    [reservation] = ec2.describe_instances(InstanceIds=[resource_id])["Reservations"]
    return str(reservation["Instances"][0]["State"]["Name"])


def run(ec2: Any, zone: str = "eu-central-1a", **more: Any) -> str:
    """The id of an instance that was just started."""
    request = {"ImageId": IMAGE, "InstanceType": KIND, "MinCount": 1, "MaxCount": 1, **more}
    return str(ec2.run_instances(Placement={"AvailabilityZone": zone}, **request)["Instances"][0]["InstanceId"])


def make_volume(ec2: Any, zone: str = "eu-central-1a", **more: Any) -> str:
    request = {"Size": 1, "VolumeType": "gp3", **more}
    return str(ec2.create_volume(AvailabilityZone=zone, **request)["VolumeId"])
