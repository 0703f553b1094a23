"""Which rights each operation needs, on which resources (service authorization reference, EC2 and EBS)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.aws.iam import Access
from tests.aws.records import ACCOUNT_ID, REGION

TagsOf = Callable[[str], Mapping[str, str]]
_DESCRIBE = "Describe"
_SNAPSHOT_PARAMS = ("SnapshotId", "ParentSnapshotId", "FirstSnapshotId", "SecondSnapshotId")


def arn(resource_id: str) -> str:
    """The name that policies know a resource by. Snapshots and images have no account in theirs."""
    kind = resource_id.partition("-")[0]
    names = {"vol": "volume", "i": "instance", "snap": "snapshot", "ami": "image", "sg": "security-group"}
    owner = "" if kind in ("snap", "ami") else ACCOUNT_ID
    return f"arn:aws:ec2:{REGION}:{owner}:{names.get(kind, kind)}/{resource_id}"


def new_arn(kind: str) -> str:
    """Of something that does not exist yet."""
    return f"arn:aws:ec2:{REGION}:{'' if kind in ('snapshot', 'image') else ACCOUNT_ID}:{kind}/*"


def ebs_rights(operation: str, params: Mapping[str, Any], tags_of: TagsOf) -> Iterator[Access]:
    action = f"ebs:{operation}"
    if operation == "StartSnapshot":
        born = _born(params.get("Tags", []))
        yield Access(action, new_arn("snapshot"), born)
        if params.get("Tags"):
            yield Access("ec2:CreateTags", new_arn("snapshot"), born)
    for name in _SNAPSHOT_PARAMS:
        if name in params:
            yield _on(action, params[name], tags_of)


def ec2_rights(operation: str, params: Mapping[str, Any], tags_of: TagsOf) -> Iterator[Access]:
    action = f"ec2:{operation}"
    if operation.startswith(_DESCRIBE):
        yield Access(action, "*")
        return
    for kind in {"CreateVolume": ["volume"], "CreateSnapshot": ["snapshot"]}.get(operation, []):
        yield Access(action, new_arn(kind), _born_with(params, kind))
    if operation == "RunInstances":
        yield from _run_rights(action, params, tags_of)
    if operation == "CreateTags":
        asked = _born(params["Tags"])
        for resource_id in params["Resources"]:
            yield Access(action, arn(resource_id), {**_held(resource_id, tags_of), **asked})
        return
    for resource_id in _named(params):
        yield _on(action, resource_id, tags_of)
    for specification in params.get("TagSpecifications", []):
        context = {**_born(specification.get("Tags", [])), "ec2:CreateAction": operation}
        yield Access("ec2:CreateTags", new_arn(specification.get("ResourceType", "")), context)


def _run_rights(action: str, params: Mapping[str, Any], tags_of: TagsOf) -> Iterator[Access]:
    yield Access(action, new_arn("instance"), _born_with(params, "instance"))
    yield Access(action, new_arn("volume"), _born_with(params, "volume"))
    yield Access(action, new_arn("network-interface"))
    for resource_id in (params.get("ImageId"), params.get("SubnetId"), *params.get("SecurityGroupIds", [])):
        if resource_id:
            yield _on(action, resource_id, tags_of)
    for mapping in params.get("BlockDeviceMappings", []):
        if snapshot_id := mapping.get("Ebs", {}).get("SnapshotId"):
            yield _on(action, snapshot_id, tags_of)
    if profile := params.get("IamInstanceProfile", {}).get("Name"):
        context = {"iam:PassedToService": "ec2.amazonaws.com"}
        yield Access("iam:PassRole", f"arn:aws:iam::{ACCOUNT_ID}:role/{profile}", context)


def _named(params: Mapping[str, Any]) -> list[str]:
    single = [params[name] for name in ("VolumeId", "SnapshotId", "InstanceId") if name in params]
    return single + list(params.get("InstanceIds", []))


def _on(action: str, resource_id: str, tags_of: TagsOf) -> Access:
    return Access(action, arn(resource_id), _held(resource_id, tags_of))


def _held(resource_id: str, tags_of: TagsOf) -> dict[str, str]:
    return {f"aws:ResourceTag/{key}": value for key, value in tags_of(resource_id).items()}


def _born(tags: list[dict[str, str]]) -> dict[str, str]:
    return {f"aws:RequestTag/{tag['Key']}": tag.get("Value", "") for tag in tags if "Key" in tag}


def _born_with(params: Mapping[str, Any], kind: str) -> dict[str, str]:
    listed = [s.get("Tags", []) for s in params.get("TagSpecifications", []) if s.get("ResourceType") == kind]
    return _born([tag for tags in listed for tag in tags])
