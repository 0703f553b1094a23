"""`boxlink snapshot create --volume` on EBS by an operator on an instance: kill -9 at any request, then the same again.
There is one snapshot then, and the volume is as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.boxlink_command import Publisher
from tests.aws.clients import client
from tests.aws.imds import Metadata, metadata_service, place_of
from tests.aws.loop_devices import loop_devices, why_not
from tests.aws.policies import policy_document
from tests.aws.requests import run
from tests.aws.standin import Standin, running_standin

ZONE = "eu-central-1a"
OURS = {"Key": "boxlink:token", "Value": "by-hand"}


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    if trouble := why_not():
        pytest.skip(trouble)
    with running_standin(tmp_path, pace=100.0) as standin, loop_devices(standin, tmp_path / "images"):
        yield standin


@pytest.fixture
def operator(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """On an instance of its own."""
    tags = [{"ResourceType": kind, "Tags": [OURS]} for kind in ("instance", "volume")]
    instance_id = run(client(standin, "ec2"), TagSpecifications=tags)
    with standin.locked():
        record = standin.instances.records[instance_id]
    values = place_of(record.id, record.kind, record.zone, record.address, record.image_id)
    with metadata_service(Metadata(standin.clock, {}, b"", values)) as endpoint:
        found = Publisher(tmp_path / "operator", standin, standin.identity("operator", policy_document("operator")))
        own = found.environment
        monkeypatch.setattr(found, "environment", lambda: {**own(), "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint})
        yield found


def kinds(standin: Standin) -> list[tuple[str, str]]:
    return sorted((each.kind, each.state) for each in standin.resources() if each.kind != "instance")


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("operation", ["AttachVolume", "CreateSnapshot", "CreateTags", "DetachVolume"])
def test_killed_and_run_again(standin: Standin, operator: Publisher, operation: str, is_done: bool) -> None:
    volume_id = client(standin, "ec2").create_volume(
        AvailabilityZone=ZONE, Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": [OURS]}]
    )["VolumeId"]
    words = ("snapshot", "create", "covers", "--driver", "ebs", "--volume", volume_id)
    operator.run_killed(operation, 1, *words, is_done=is_done)
    made = operator.json(*words)["snapshot"]
    assert operator.json(*words)["snapshot"] == made
    assert kinds(standin) == [("snapshot", "completed"), ("volume", "available")]
    [snapshot] = [each for each in standin.resources() if each.kind == "snapshot"]
    assert (snapshot.id, snapshot.tags["boxlink:complete"]) == (made, "1")
    [shown] = operator.json("snapshot", "ls", "covers", "--driver", "ebs")["snapshots"]
    assert (shown["snapshot"], shown["seq"]) == (made, 1)
