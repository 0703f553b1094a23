"""The stand-in refuses what EC2 refuses, and the usual mock accepts; and what botocore's model does not know."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.aws.clients import client
from tests.aws.refusal import Refused
from tests.aws.requests import IMAGE, KIND, block, completed, make_volume, put, refused, run, state_of
from tests.aws.server import serving
from tests.aws.signature import RawRequest
from tests.aws.standin import Standin

GONE = "vol-00000000000000fff"


def sent_with(ec2: Any, **changed: str) -> Any:
    """A client whose requests hold what its model does not."""
    ec2.meta.events.register("before-call.ec2", lambda params, **_: params["body"].update(changed))
    return ec2


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"Colour": "blue"}, "UnknownParameter"),
        ({"Size": "one"}, "InvalidParameterValue"),
        ({"Size.1": "1"}, "UnknownParameter"),
        ({"VolumeType": "gp9"}, "InvalidParameterValue"),
        ({"TagSpecification.2.ResourceType": "volume"}, "InvalidParameterValue"),
        ({"DryRun": "yes"}, "InvalidParameterValue"),
        ({"Action": "MakeVolume"}, "InvalidAction"),
        ({"Version": "2006-06-26"}, "InvalidAction"),
    ],
)
def test_request_is_held_against_the_model(standin: Standin, ec2: Any, changed: dict[str, str], code: str) -> None:
    with refused(code):
        make_volume(sent_with(ec2, **changed))
    assert standin.resources() == []


def test_missing_parameter_is_refused(standin: Standin) -> None:
    with refused("MissingParameter"):
        client(standin, "ec2", parameter_validation=False).attach_volume(VolumeId=GONE)


def test_unknown_header_and_query_are_refused(standin: Standin, ebs: Any) -> None:
    def add_header(params: dict[str, Any], **_: Any) -> None:
        params["headers"]["x-amz-Colour"] = "blue"

    def add_query(params: dict[str, Any], **_: Any) -> None:
        params["url"] += "?colour=blue"

    for add in (add_header, add_query):
        ebs.meta.events.register("before-call.ebs", add)
        with refused("ValidationException", "INVALID_PARAMETER_VALUE"):
            ebs.start_snapshot(VolumeSize=1)
        ebs.meta.events.unregister("before-call.ebs", add)
    assert ebs.start_snapshot(VolumeSize=1)


def test_signature_is_checked(standin: Standin) -> None:
    who = standin.administrator
    with refused("SignatureDoesNotMatch"):
        client(standin, "ec2", replace(who, secret_key="wrong")).describe_volumes()
    with refused("AuthFailure"):
        client(standin, "ec2", replace(who, access_key="AKIANOBODY")).describe_volumes()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{standin.endpoint}/?Action=DescribeVolumes")
    assert caught.value.code == 403
    caught.value.close()


def test_changed_body_is_not_what_was_signed(standin: Standin, ebs: Any) -> None:
    def change(request: Any, **_: Any) -> None:
        request.body = request.body.replace(b"1", b"2")

    ebs.meta.events.register("before-send.ebs", change)
    with refused("SignatureDoesNotMatch"):
        ebs.start_snapshot(VolumeSize=1)


def test_volume_takes_its_time(standin: Standin, ec2: Any) -> None:
    volume_id, instance_id = make_volume(ec2), run(ec2)
    assert state_of(ec2, volume_id) == "creating"
    assert state_of(ec2, instance_id) == "pending"
    standin.clock.advance(standin.delays.run_s - 1)
    assert (state_of(ec2, volume_id), state_of(ec2, instance_id)) == ("available", "pending")
    with refused("IncorrectState"):
        ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    standin.clock.advance(1)
    attachment = ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    assert attachment["State"] == "attaching"
    with refused("IncorrectState"):
        ec2.detach_volume(VolumeId=volume_id)
    standin.clock.advance(standin.delays.attach_s)
    [volume] = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    assert (volume["State"], volume["Attachments"][0]["State"]) == ("in-use", "attached")


def test_volume_request_rules(standin: Standin, ec2: Any, ebs: Any) -> None:
    big = completed(standin, ebs, {}, size_gib=2)
    pending = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    for code, request in {
        "InvalidZone.NotFound": {"zone": "eu-central-1z"},
        "InvalidSnapshot.NotFound": {"SnapshotId": "snap-00000000000000fff"},
        "InvalidSnapshotID.Malformed": {"SnapshotId": "snapshot"},
        "IncorrectState": {"SnapshotId": pending},
    }.items():
        with refused(code):
            make_volume(ec2, **request)
    for request in (
        {"SnapshotId": big, "Size": 1},
        {"VolumeInitializationRate": 200},
        {"SnapshotId": big, "Size": 2, "VolumeInitializationRate": 400},
        {"Throughput": 3000},
        {"VolumeType": "standard", "Iops": 3000},
        {"Size": 70_000},
        {"TagSpecifications": [{"ResourceType": "snapshot", "Tags": [{"Key": "a", "Value": "b"}]}]},
    ):
        with refused("InvalidParameterValue"):
            make_volume(ec2, **request)
    with refused("MissingParameter"):
        ec2.create_volume(AvailabilityZone="eu-central-1a")
    assert [resource.kind for resource in standin.resources()] == ["snapshot", "snapshot"]


def test_volume_token_is_of_one_request(standin: Standin, ec2: Any) -> None:
    first = make_volume(ec2, ClientToken="one")
    assert make_volume(ec2, ClientToken="one") == first
    with refused("IdempotentParameterMismatch"):
        make_volume(ec2, ClientToken="one", Size=2)
    with refused("IdempotentParameterMismatch"):
        make_volume(ec2, "eu-central-1b", ClientToken="one")
    assert [resource.id for resource in standin.resources()] == [first]


def test_attachment_rules(standin: Standin, ec2: Any) -> None:
    near, second, far = make_volume(ec2), make_volume(ec2), make_volume(ec2, "eu-central-1b")
    one, two = run(ec2), run(ec2)
    standin.clock.advance(60)
    standin.limits.attachments_per_instance = 1
    with refused("InvalidVolume.ZoneMismatch"):
        ec2.attach_volume(VolumeId=far, InstanceId=one, Device="/dev/sdf")
    with refused("InvalidParameterValue"):
        ec2.attach_volume(VolumeId=near, InstanceId=one, Device="sdf")
    with refused("InvalidInstanceID.NotFound"):
        ec2.attach_volume(VolumeId=near, InstanceId="i-00000000000000fff", Device="/dev/sdf")
    ec2.attach_volume(VolumeId=near, InstanceId=one, Device="/dev/sdf")
    with refused("VolumeInUse"):
        ec2.attach_volume(VolumeId=near, InstanceId=two, Device="/dev/sdf")
    with refused("VolumeInUse"):
        ec2.delete_volume(VolumeId=near)
    with refused("InvalidParameterValue"):
        ec2.attach_volume(VolumeId=second, InstanceId=one, Device="/dev/sdf")
    with refused("AttachmentLimitExceeded"):
        ec2.attach_volume(VolumeId=second, InstanceId=one, Device="/dev/sdg")
    standin.clock.advance(60)
    with refused("InvalidAttachment.NotFound"):
        ec2.detach_volume(VolumeId=near, InstanceId=two)
    with refused("IncorrectState"):
        ec2.detach_volume(VolumeId=second)


def test_busy_detach_waits_for_who_has_it_open(standin: Standin, ec2: Any) -> None:
    volume_id, instance_id = make_volume(ec2), run(ec2)
    standin.clock.advance(60)
    ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    standin.clock.advance(60)
    standin.script.busy_volumes.add(volume_id)
    assert ec2.detach_volume(VolumeId=volume_id)["State"] == "busy"
    with refused("IncorrectState"):
        ec2.detach_volume(VolumeId=volume_id)
    standin.clock.advance(3600)
    assert state_of(ec2, volume_id) == "in-use"
    standin.script.busy_volumes.clear()
    assert state_of(ec2, volume_id) == "in-use"
    standin.clock.advance(standin.delays.detach_s)
    assert state_of(ec2, volume_id) == "available"


def test_deleted_volume_goes(standin: Standin, ec2: Any) -> None:
    volume_id = make_volume(ec2)
    with refused("IncorrectState"):
        ec2.delete_volume(VolumeId=volume_id)
    standin.clock.advance(60)
    ec2.delete_volume(VolumeId=volume_id)
    assert state_of(ec2, volume_id) == "deleting"
    standin.clock.advance(60)
    with refused("InvalidVolume.NotFound"):
        ec2.describe_volumes(VolumeIds=[volume_id])
    assert standin.resources() == []


def test_volume_snapshot_rules(standin: Standin, ec2: Any) -> None:
    with refused("InvalidVolume.NotFound"):
        ec2.create_snapshot(VolumeId=GONE)
    volume_id = make_volume(ec2)
    with refused("IncorrectState"):
        ec2.create_snapshot(VolumeId=volume_id)
    standin.clock.advance(60)
    made = ec2.create_snapshot(VolumeId=volume_id)
    assert made["State"] == "pending"
    with refused("SnapshotCreationPerVolumeRateExceeded"):
        ec2.create_snapshot(VolumeId=volume_id)
    standin.delays.snapshot_s = 3600
    for _ in range(5):
        standin.clock.advance(60)
        ec2.create_snapshot(VolumeId=volume_id)
    standin.clock.advance(60)
    with refused("ConcurrentSnapshotLimitExceeded"):
        ec2.create_snapshot(VolumeId=volume_id)


def test_snapshots_of_everybody_are_not_asked_for(ec2: Any) -> None:
    with refused("InvalidParameterCombination"):
        ec2.describe_snapshots()
    assert ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_describe_has_pages_filters_and_limits(standin: Standin, ec2: Any) -> None:
    ids = [make_volume(ec2, Size=size) for size in (1, 2, 2, 3, 2, 2, 2)]
    standin.limits.describe_page = 3
    filters = [{"Name": "size", "Values": ["2", "4"]}]
    first = ec2.describe_volumes(MaxResults=5, Filters=filters)
    second = ec2.describe_volumes(MaxResults=5, Filters=filters, NextToken=first["NextToken"])
    assert [len(first["Volumes"]), len(second["Volumes"])] == [3, 2]
    assert "NextToken" not in second
    with refused("InvalidParameterCombination"):
        ec2.describe_volumes(VolumeIds=ids, MaxResults=5)
    with refused("InvalidParameterValue"):
        ec2.describe_volumes(MaxResults=4)
    with refused("InvalidParameterValue"):
        ec2.describe_volumes(Filters=[{"Name": "colour", "Values": ["blue"]}])
    with refused("FilterLimitExceeded"):
        ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [f"vol-{n:017x}" for n in range(201)]}])
    with refused("InvalidVolume.NotFound"):
        ec2.describe_volumes(VolumeIds=[ids[0], GONE])


def test_dry_run_does_nothing(standin: Standin, ec2: Any) -> None:
    with refused("DryRunOperation"):
        make_volume(ec2, DryRun=True)
    with refused("DryRunOperation"):
        run(ec2, DryRun=True)
    assert standin.resources() == []


def test_new_things_are_not_found_at_first(standin: Standin, ec2: Any, ebs: Any) -> None:
    standin.script.hidden_s = 5
    volume_id, snapshot_id = make_volume(ec2), ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    with refused("InvalidVolume.NotFound"):
        ec2.describe_volumes(VolumeIds=[volume_id])
    with refused("InvalidSnapshot.NotFound"):
        ec2.create_tags(Resources=[snapshot_id], Tags=[{"Key": "a", "Value": "b"}])
    with refused("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND"):
        put(ebs, snapshot_id, 0, block(1))
    assert ec2.describe_volumes()["Volumes"] == []
    standin.clock.advance(5)
    assert [volume["VolumeId"] for volume in ec2.describe_volumes()["Volumes"]] == [volume_id]


def test_instance_rules(standin: Standin, ec2: Any) -> None:
    for code, request in {
        "InvalidAMIID.NotFound": {"ImageId": "ami-00000000000000fff"},
        "InvalidSubnetID.NotFound": {"SubnetId": "subnet-00000000000000fff"},
        "InvalidGroup.NotFound": {"SecurityGroupIds": ["sg-00000000000000fff"]},
        "InvalidParameterValue": {"InstanceType": "c7g.enormous"},
        "UnsupportedOperation": {"EnclaveOptions": {"Enabled": True}},
    }.items():
        with refused(code):
            run(ec2, **request)
    for request in ({"zone": "eu-central-1z"}, {"UserData": "x" * 16_385}, {"MinCount": 2}, {"MinCount": 0}):
        with refused("InvalidParameterValue"):
            run(ec2, **request)
    with refused("InvalidUserData.Malformed"):
        run(sent_with(client(standin, "ec2"), UserData="no base64!"))
    run(ec2, UserData="x" * 16_384)
    assert len(standin.resources()) == 1


def test_no_capacity_in_a_zone_or_for_a_type(standin: Standin, ec2: Any) -> None:
    standin.script.exhausted |= {("eu-central-1a", KIND), "eu-central-1b"}
    for zone, kind in (("eu-central-1a", KIND), ("eu-central-1b", "m7g.large")):
        with refused("InsufficientInstanceCapacity"):
            run(ec2, zone, InstanceType=kind)
    with refused("InsufficientVolumeCapacity"):
        make_volume(ec2, "eu-central-1b")
    run(ec2, "eu-central-1a", InstanceType="m7g.large")
    run(ec2, "eu-central-1c")
    standin.limits.instances = 2
    with refused("VcpuLimitExceeded"):
        run(ec2, "eu-central-1c")


def test_instance_token_is_of_one_request(standin: Standin, ec2: Any) -> None:
    standin.script.exhausted.add("eu-central-1a")
    with refused("InsufficientInstanceCapacity"):
        run(ec2, ClientToken="one")
    with refused("IdempotentParameterMismatch"):
        run(ec2, "eu-central-1b", ClientToken="one")
    standin.script.exhausted.clear()
    first = run(ec2, ClientToken="one")
    assert run(ec2, ClientToken="one") == first
    ec2.terminate_instances(InstanceIds=[first])
    standin.clock.advance(60)
    with refused("IdempotentInstanceTerminated"):
        run(ec2, ClientToken="one")
    assert standin.resources() == []


def test_ended_instance_takes_its_volumes_along_or_lets_them_go(standin: Standin, ec2: Any, ebs: Any) -> None:
    snapshot_id = completed(standin, ebs, {0: block(1)})
    mapping = [
        {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot_id, "VolumeType": "gp3"}},
        {"DeviceName": "/dev/sdg", "Ebs": {"VolumeSize": 1, "VolumeType": "gp3", "DeleteOnTermination": False}},
    ]
    instance_id = run(ec2, BlockDeviceMappings=mapping)
    standin.clock.advance(60)
    assert [resource.state for resource in standin.resources()] == ["running", "completed", "in-use", "in-use"]
    ec2.terminate_instances(InstanceIds=[instance_id])
    standin.clock.advance(standin.delays.terminate_s)
    assert state_of(ec2, instance_id) == "terminated"
    standin.clock.advance(60)
    left = [(resource.kind, resource.state) for resource in standin.resources()]
    assert left == [("snapshot", "completed"), ("volume", "available")]


def test_script_fails_and_loses_answers(standin: Standin, ec2: Any) -> None:
    standin.script.fail("CreateVolume", Refused("InternalError", "no", status=500))
    with refused("InternalError"):
        make_volume(ec2)
    assert standin.resources() == []
    standin.script.lose_answer("CreateVolume")
    with pytest.raises(Exception, match="Connection was closed"):
        make_volume(ec2, ClientToken="one")
    [resource] = standin.resources()
    assert make_volume(ec2, ClientToken="one") == resource.id


def test_mistake_of_the_standin_is_not_hidden_by_tries() -> None:
    def mistaken(request: RawRequest) -> tuple[int, dict[str, str], bytes]:
        raise LookupError("a mistake")

    with pytest.raises(LookupError, match="a mistake"), serving(mistaken) as endpoint, suppress(ConnectionError):
        urllib.request.urlopen(endpoint)


def test_user_data_arrives(standin: Standin, ec2: Any) -> None:
    instance_id = run(ec2, UserData='store = "s3://b"\n')
    assert standin.instances.records[instance_id].user_data == b'store = "s3://b"\n'
    ec2.run_instances(
        ImageId=IMAGE, InstanceType=KIND, MinCount=2, MaxCount=2, UserData=base64.b64encode(b"x").decode()
    )
    assert len(standin.resources()) == 3
