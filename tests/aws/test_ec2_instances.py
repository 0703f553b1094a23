"""Instances: started once, wherever there is room, by whoever may; found again; ended."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.core.snapshot_tags import STORE
from synclib.errors import BoxlinkError, Conflict, Full, Invalid, Unavailable
from synclib.volume.aws_calls import Calls
from synclib.volume.ebs_answers import TOKEN_TAG
from tests.aws.clients import client
from tests.aws.policies import policy_document
from tests.aws.refusal import Refused
from tests.aws.requests import IMAGE, block, completed
from tests.aws.standin import Standin
from tools.fleet.ec2_instances import instances, run_instance, terminate, wait_until_running

FLEET = "s3://covers-bucket/fleet"
KINDS = ("c7g.large", "m7g.large")
BROKEN = Refused("InternalError", "An internal error has occurred", status=500)


def requests(standin: Standin, name: str = "render-1", **more: object) -> list[dict[str, object]]:
    """As ``boxlink launch`` writes them: one for each type and subnet."""
    found = []
    for kind in KINDS:
        for subnet in standin.instances.subnets:
            request: dict[str, object] = {
                "ImageId": IMAGE,
                "InstanceType": kind,
                "MinCount": 1,
                "MaxCount": 1,
                "SubnetId": subnet,
                "UserData": 'store = "s3://covers"\n',
                "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
                "TagSpecifications": [
                    {
                        "ResourceType": resource,
                        "Tags": [{"Key": "boxlink:node", "Value": name}, {"Key": STORE, "Value": FLEET}],
                    }
                    for resource in ("instance", "volume")
                ],
                **more,
            }
            token = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
            found.append({**request, "ClientToken": token})
    return found


@pytest.fixture
def calls(standin: Standin) -> Calls:
    return Calls(standin.clock, SeededEntropy(1))


def ids(standin: Standin) -> list[str]:
    return [resource.id for resource in standin.resources() if resource.kind == "instance"]


def test_starts_what_is_wished_for(standin: Standin, ec2: Any, calls: Calls) -> None:
    started = run_instance(ec2, requests(standin), calls)
    [instance] = wait_until_running(ec2, [started], calls)
    assert (instance.state, instance.kind, instance.zone) == ("running", KINDS[0], standin.site.zones[0])
    assert instance.tags == {"boxlink:node": "render-1", STORE: FLEET, TOKEN_TAG: requests(standin)[0]["ClientToken"]}
    record = standin.instances.records[started]
    assert record.user_data == b'store = "s3://covers"\n'
    assert record.metadata["HttpTokens"] == "required"
    assert ids(standin) == [started]


def test_same_again_starts_nothing_further(standin: Standin, ec2: Any, calls: Calls) -> None:
    first = run_instance(ec2, requests(standin), calls)
    assert run_instance(ec2, requests(standin), calls) == first
    assert run_instance(ec2, requests(standin, "render-2"), calls) != first
    assert len(ids(standin)) == 2


def test_goes_on_to_the_next_zone_and_type(standin: Standin, ec2: Any, calls: Calls) -> None:
    zones = standin.site.zones
    standin.script.exhausted |= {(zone, KINDS[0]) for zone in zones} | {zones[0]}
    started = run_instance(ec2, requests(standin), calls)
    [instance] = instances(ec2, [started], None, calls)
    assert (instance.kind, instance.zone) == (KINDS[1], zones[1])
    assert standin.requests["RunInstances"] == 5


def test_killed_after_the_second_zone_and_run_again_pays_once(standin: Standin, ec2: Any, calls: Calls) -> None:
    """The first zone has room again by then."""
    standin.script.exhausted.add(standin.site.zones[0])
    first = run_instance(ec2, requests(standin), calls)
    standin.script.exhausted.clear()
    assert run_instance(ec2, requests(standin), calls) == first
    assert ids(standin) == [first]


def test_no_room_anywhere_says_where(standin: Standin, ec2: Any, calls: Calls) -> None:
    standin.script.exhausted |= set(standin.site.zones)
    with pytest.raises(Full) as caught:
        run_instance(ec2, requests(standin), calls)
    assert KINDS[1] in caught.value.message
    assert "subnets" in caught.value.hint
    assert ids(standin) == []


@pytest.mark.parametrize("operation", ["RunInstances", "TerminateInstances"])
def test_lost_and_broken_answers(standin: Standin, ec2: Any, calls: Calls, operation: str) -> None:
    standin.script.fail(operation, BROKEN, times=2)
    standin.script.lose_answer(operation)
    started = run_instance(ec2, requests(standin), calls)
    assert ids(standin) == [started]
    terminate(ec2, [started], calls)
    standin.clock.advance(60)
    assert standin.resources() == []
    terminate(ec2, [started, "i-00000000000000fff"], calls)


def test_refusal_ends_the_tries(standin: Standin, ec2: Any, calls: Calls) -> None:
    with pytest.raises(BoxlinkError, match="InvalidAMIID"):
        run_instance(ec2, requests(standin, ImageId="ami-00000000000000fff"), calls)
    assert standin.requests["RunInstances"] == 1


def test_ended_node_is_not_started_again(standin: Standin, ec2: Any, calls: Calls) -> None:
    started = run_instance(ec2, requests(standin), calls)
    terminate(ec2, [started], calls)
    with pytest.raises(Conflict, match="shutting-down"):
        run_instance(ec2, requests(standin), calls)
    standin.clock.advance(60)
    with pytest.raises(Conflict, match="terminated"):
        wait_until_running(ec2, [started], calls)


def test_never_running_is_said(standin: Standin, ec2: Any, calls: Calls) -> None:
    standin.delays.run_s = 3600
    started = run_instance(ec2, requests(standin), calls)
    with pytest.raises(Unavailable, match=started):
        wait_until_running(ec2, [started], calls)


def test_new_instance_is_waited_for_though_not_seen(standin: Standin, ec2: Any, calls: Calls) -> None:
    standin.script.hidden_s = 30
    started = run_instance(ec2, requests(standin), calls)
    looks = standin.requests["DescribeInstances"]
    assert wait_until_running(ec2, [started], calls)[0].state == "running"
    assert standin.requests["DescribeInstances"] - looks < 30


def test_fleet_is_looked_at_as_one(standin: Standin, ec2: Any, calls: Calls) -> None:
    started = [run_instance(ec2, requests(standin, f"r{number}"), calls) for number in range(7)]
    ec2.run_instances(ImageId=IMAGE, InstanceType=KINDS[0], MinCount=1, MaxCount=1)
    standin.limits.describe_page = 3
    assert [each.id for each in instances(ec2, (), None, calls)] == started
    [third] = instances(ec2, (), {"boxlink:node": "r2"}, calls)
    assert third.id == started[2]
    looks = standin.requests["DescribeInstances"]
    assert [each.id for each in wait_until_running(ec2, started, calls)] == started
    assert standin.requests["DescribeInstances"] - looks <= 3 * 15


def test_each_request_needs_its_own_token(standin: Standin, ec2: Any) -> None:
    [first, *_] = requests(standin)
    for wrong in ([first, first], [{**first, "ClientToken": ""}]):
        with pytest.raises(Invalid):
            run_instance(ec2, wrong)
    assert standin.resources() == []


def test_volume_of_a_snapshot_comes_along(standin: Standin, ec2: Any, ebs: Any, calls: Calls) -> None:
    snapshot_id = completed(standin, ebs, {0: block(1)})
    mapping = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot_id, "VolumeType": "gp3"}}]
    started = run_instance(ec2, requests(standin, BlockDeviceMappings=mapping), calls)
    wait_until_running(ec2, [started], calls)
    [volume] = [resource for resource in standin.resources() if resource.kind == "volume"]
    assert TOKEN_TAG in volume.tags
    terminate(ec2, [started], calls)
    for _ in range(2):
        standin.clock.advance(60)
        left = [resource.kind for resource in standin.resources()]
    assert left == ["snapshot"]


def test_operators_rights_are_enough_and_nodes_are_not(standin: Standin, calls: Calls) -> None:
    profile = {"IamInstanceProfile": {"Name": "boxlink-node"}}
    node = client(standin, "ec2", standin.identity("node", policy_document("node")))
    with pytest.raises(Invalid, match="UnauthorizedOperation"):
        run_instance(node, requests(standin, **profile), calls)
    operator = client(standin, "ec2", standin.identity("operator", policy_document("operator")))
    started = run_instance(operator, requests(standin, **profile), calls)
    wait_until_running(operator, [started], calls)
    with pytest.raises(Invalid, match="UnauthorizedOperation"):
        terminate(node, [started], calls)
    terminate(operator, [started], calls)
    standin.clock.advance(60)
    assert standin.resources() == []


def test_user_data_goes_as_it_is(standin: Standin, ec2: Any, calls: Calls) -> None:
    """boto3 writes it in base64 itself: whoever did it before would send it twice encoded."""
    text = base64.b64encode(b"not to be decoded").decode()
    started = run_instance(ec2, requests(standin, UserData=text), calls)
    assert standin.instances.records[started].user_data == text.encode()
