"""Instances of EC2 (API version 2016-11-15): started once, wherever there is room; found again; ended.

A request's client token says what it is, so that the same request again starts nothing further; it is a tag too
(``boxlink:token``), which the policies of docs/iam.md know our instances and volumes by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError
from pydantic import ValidationError

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.machine import Machine
from synclib.errors import Conflict, Full, Invalid, Unavailable, Unsupported
from synclib.volume.aws_calls import Calls, client_settings
from synclib.volume.aws_errors import translate
from synclib.volume.ebs_answers import TOKEN_TAG
from synclib.volume.waiting import wait_until

RUNNING_S = 300.0  # from pending to running it takes 17 s, mostly
_PAGE = 500
_PAGES_MAX = 1000
_FILTER_VALUES_MAX = 200
_LIVE = ("pending", "running", "stopping", "stopped")
_GOING = ("shutting-down", "terminated")
INSTANCE_ID = re.compile(r"i-[0-9a-f]{8,17}")


@dataclass(frozen=True)
class Instance:
    """``state`` in EC2's words, ``address`` private."""

    id: str
    state: str
    zone: str
    kind: str
    address: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    machine: Machine | None = None


def client(settings: Mapping[str, str | None]) -> Any:
    """boto3's client of the store's ``region`` and ``profile``. The store's ``endpoint`` is S3's and not meant here:
    boto3 itself obeys AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_EC2."""
    import boto3
    from botocore.config import Config

    try:
        session = boto3.session.Session(profile_name=settings.get("profile"), region_name=settings.get("region"))
        return session.client("ec2", config=Config(**client_settings()))
    except BotoCoreError as error:
        raise translate(error, "open EC2") from error


def region_of(settings: Mapping[str, str | None]) -> str:
    """The region that :func:`client` asks; empty where none is set."""
    import boto3

    try:
        session = boto3.session.Session(profile_name=settings.get("profile"), region_name=settings.get("region"))
        return session.region_name or ""
    except BotoCoreError as error:
        raise translate(error, "open EC2") from error


def real_calls() -> Calls:
    """Of this machine's clock, where none is given."""
    return Calls(SystemClock(), SystemEntropy())


def run_instance(
    ec2: Any,
    tries: Sequence[Mapping[str, object]],
    calls: Calls | None = None,
) -> str:
    """The id of an instance that one of these requests started: parameters of RunInstances for one instance, each with
    a ClientToken of its own, the wished for first. The next is tried where there is no room.

    One that any of them has started before is answered first, so that a killed caller's second run pays for nothing
    further. Full when there is room for none; Conflict when it was started before and has been ended since.
    """
    calls = calls or real_calls()
    tokens = [str(request.get("ClientToken", "")) for request in tries]
    if not all(tokens) or len(set(tokens)) != len(tokens):
        raise Invalid("each request needs a client token of its own")
    known = _found(ec2, calls, [{"Name": "client-token", "Values": tokens}])
    for instance in known:
        if instance.state in _LIVE:
            return instance.id
    if known:
        raise Conflict(
            f"the instance {known[0].id} of this name was started before and is {known[0].state}",
            hint="a node that has ended is not started again: take another name",
        )
    full: list[str] = []
    for request in tries:
        try:
            return _run(ec2, calls, request)
        except Full as error:
            full.append(error.message)
    raise Full(
        f"there is room for the instance nowhere: {'; '.join(full)[:1000]}",
        hint="name more types or subnets, or try again later",
    )


def _run(ec2: Any, calls: Calls, request: Mapping[str, object]) -> str:
    where = f"{request.get('InstanceType')} in {request.get('SubnetId') or _placement(request) or 'any zone'}"
    tagged = as_sent(request)
    answer = calls.repeated(f"start {where}", lambda: ec2.run_instances(**tagged))
    [instance] = [_instance(row) for row in answer["Instances"]]
    return instance.id


def instances(
    ec2: Any,
    ids: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    calls: Calls | None = None,
) -> list[Instance]:
    """Those of the ids that there are (all of ours, where none is given), with all of the tags; ended ones for a while
    too."""
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in sorted((tags or {}).items())]
    filters = filters or [{"Name": "tag-key", "Values": [TOKEN_TAG]}]
    calls = calls or real_calls()
    found: list[Instance] = []
    for start in range(0, max(1, len(ids)), _FILTER_VALUES_MAX):
        some = list(ids[start : start + _FILTER_VALUES_MAX])
        found += _found(ec2, calls, [{"Name": "instance-id", "Values": some}] if some else filters)
    return [each for each in found if all(each.tags.get(key) == value for key, value in (tags or {}).items())]


def wait_until_running(
    ec2: Any,
    ids: Sequence[str],
    calls: Calls | None = None,
    deadline_s: float = RUNNING_S,
) -> list[Instance]:
    """Look at all of them until each is running. Conflict when one has ended instead."""
    calls = calls or real_calls()

    def is_running(instance: Instance) -> bool:
        if instance.state in _GOING:
            raise Conflict(
                f"the instance {instance.id} is {instance.state}",
                hint="EC2 says why: aws ec2 describe-instances, StateReason",
            )
        return instance.state == "running"

    def look(some: Sequence[str]) -> list[Instance]:
        return instances(ec2, some, None, calls)

    return wait_until(look, ids, is_running, clock=calls.clock, entropy=calls.entropy, deadline_s=deadline_s)


def terminate(ec2: Any, ids: Sequence[str], calls: Calls | None = None) -> None:
    """End them; no error where one has ended or is not there."""
    calls = calls or real_calls()

    def attempt() -> None:
        live = [each.id for each in instances(ec2, ids, None, calls) if each.state in _LIVE]
        if live:
            ec2.terminate_instances(InstanceIds=live)

    if ids:
        calls.repeated(f"end {', '.join(ids)}", attempt)


def tag_instances(ec2: Any, ids: Sequence[str], tags: Mapping[str, str], calls: Calls | None = None) -> None:
    """Put tags on instances, over what they say there."""
    calls = calls or real_calls()
    listed = [{"Key": name, "Value": value} for name, value in sorted(tags.items())]
    if ids:
        calls.repeated(f"tag {', '.join(ids)}", lambda: ec2.create_tags(Resources=list(ids), Tags=listed))


def as_sent(request: Mapping[str, object]) -> dict[str, Any]:
    """The parameters of RunInstances: the request, with its token as a tag on all that it makes."""
    token = {"Key": TOKEN_TAG, "Value": str(request["ClientToken"])}
    given = request.get("TagSpecifications", ())
    tags: dict[str, list[object]] = {"instance": [], "volume": []}
    for specification in given if isinstance(given, list | tuple) else ():
        tags.setdefault(specification["ResourceType"], []).extend(specification["Tags"])
    specifications = [{"ResourceType": kind, "Tags": [*listed, token]} for kind, listed in tags.items()]
    return {**request, "TagSpecifications": specifications}


def _placement(request: Mapping[str, object]) -> str:
    placement = request.get("Placement")
    return str(placement.get("AvailabilityZone", "")) if isinstance(placement, Mapping) else ""


def _found(ec2: Any, calls: Calls, filters: list[dict[str, Any]]) -> list[Instance]:
    found: list[Instance] = []
    more: dict[str, str] = {}
    for _ in range(_PAGES_MAX):
        request = {"Filters": filters, "MaxResults": _PAGE, **more}
        answer = calls.repeated("list instances", lambda request=request: ec2.describe_instances(**request))  # type: ignore[misc]
        for reservation in answer.get("Reservations", []):
            found += [_instance(row) for row in reservation.get("Instances", [])]
        if not answer.get("NextToken"):
            return found
        more = {"NextToken": answer["NextToken"]}
    raise Unavailable("list instances: the list does not end")


def _instance(row: Mapping[str, Any]) -> Instance:
    instance_id, state = row.get("InstanceId"), row.get("State", {}).get("Name")
    if not isinstance(instance_id, str) or not INSTANCE_ID.fullmatch(instance_id) or state not in (*_LIVE, *_GOING):
        raise Unsupported(f"AWS answered with the instance {str(instance_id)[:40]!r}, which is {str(state)[:40]!r}")
    return Instance(
        instance_id,
        state,
        str(row.get("Placement", {}).get("AvailabilityZone", "")),
        str(row.get("InstanceType", "")),
        str(row.get("PrivateIpAddress", "")),
        {str(tag.get("Key")): str(tag.get("Value", "")) for tag in row.get("Tags", [])},
        _machine(row),
    )


def _machine(row: Mapping[str, Any]) -> Machine | None:
    """What another one like it is asked for; None for an answer that does not say it."""
    image, kind, subnet = row.get("ImageId"), row.get("InstanceType"), row.get("SubnetId")
    profile = str(row.get("IamInstanceProfile", {}).get("Arn", "")).rpartition("/")[2]
    groups = tuple(str(group.get("GroupId", "")) for group in row.get("SecurityGroups", []))
    if not image or not kind:
        return None
    try:
        return Machine(str(image), (str(kind),), (str(subnet),) if subnet else (), groups, profile)
    except ValidationError:
        return None
