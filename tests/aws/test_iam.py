"""Policies: how they are read here, and that those of docs/iam/ give each role what it needs of EC2 and EBS, and no
more. What is not boxlink's (it lacks the driver's tag) nobody may touch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from botocore.exceptions import ClientError

from synclib.clock import SeededEntropy
from synclib.core.snapshot_tags import STORE
from synclib.errors import Invalid
from synclib.volume.base import VolumeState
from synclib.volume.ebs import EbsDriver
from synclib.volume.ebs_answers import TOKEN_TAG
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until
from tests.aws.clients import client
from tests.aws.iam import Access, load_policy
from tests.aws.policies import BUCKET, PREFIX, ROLES, policy_document
from tests.aws.refusal import Refused
from tests.aws.requests import block, completed, make_volume, refused, run
from tests.aws.standin import Standin

POLICY_BYTES_MAX = 6144  # of a managed policy, without white space (IAM quotas)
OURS = {"Key": TOKEN_TAG, "Value": "one"}
OUR_STORE = {"Key": STORE, "Value": f"s3://{BUCKET}/{PREFIX}"}
OTHER_STORE = {"Key": STORE, "Value": f"s3://{BUCKET}/{PREFIX}2"}


def policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(action: str, resource: str = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def test_nothing_is_allowed_that_no_statement_allows() -> None:
    assert not load_policy(policy()).allows(Access("ec2:RunInstances", "*"))
    loaded = load_policy(policy(allow("ec2:Describe*")))
    assert loaded.allows(Access("ec2:DescribeVolumes", "*"))
    assert loaded.allows(Access("EC2:describevolumes", "*"))
    assert not loaded.allows(Access("ec2:DeleteVolume", "*"))


def test_a_denial_wins() -> None:
    loaded = load_policy(
        policy(allow("*"), {"Effect": "Deny", "Action": "ec2:*", "Resource": "arn:aws:ec2:*:volume/x"})
    )
    assert loaded.allows(Access("ec2:DeleteVolume", "arn:aws:ec2:eu:1:volume/y"))
    assert not loaded.allows(Access("ec2:DeleteVolume", "arn:aws:ec2:eu:1:volume/x"))


def test_conditions_need_their_key() -> None:
    loaded = load_policy(policy(allow("*", Condition={"StringLike": {"aws:ResourceTag/role": ["c*s", "x"]}})))
    assert loaded.allows(Access("a:b", "*", {"aws:ResourceTag/role": "covers"}))
    assert not loaded.allows(Access("a:b", "*", {"aws:ResourceTag/role": "logs!"}))
    assert not loaded.allows(Access("a:b", "*", {"aws:RequestTag/role": "covers"}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"Statement": []},
        policy(allow("*", Principal="*")),
        policy({"Effect": "Allow", "NotAction": "*", "Resource": "*"}),
        policy(allow("*", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})),
    ],
)
def test_what_is_not_known_is_no_policy(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        load_policy(wrong)


@pytest.mark.parametrize("role", ROLES)
def test_policy_is_small_enough_and_names_no_wildcard_action(role: str) -> None:
    document = policy_document(role)
    assert len(json.dumps(document, separators=(",", ":"))) <= POLICY_BYTES_MAX
    for statement in load_policy(document).statements:
        assert not [action for action in statement.actions if "*" in action]


@dataclass
class Site:
    """A fleet's resources and one stranger's; who asks is a role."""

    standin: Standin
    admin: Any
    snapshot: str
    volume: str
    instance: str
    strangers_snapshot: str
    strangers_volume: str
    strangers_instance: str
    other_stores_instance: str

    def as_role(self, role: str, service: str) -> Any:
        return client(self.standin, service, self.standin.identity(role, policy_document(role)))


@pytest.fixture
def site(standin: Standin, ec2: Any, ebs: Any) -> Site:
    snapshots = [completed(standin, ebs, {0: block(1)}) for _ in range(2)]
    volumes = [make_volume(ec2) for _ in range(2)]
    instances = [run(ec2) for _ in range(3)]
    standin.clock.advance(60)
    ec2.create_tags(Resources=[snapshots[0], volumes[0], instances[0], instances[2]], Tags=[OURS])
    ec2.create_tags(Resources=[instances[0]], Tags=[OUR_STORE])
    ec2.create_tags(Resources=[instances[2]], Tags=[OTHER_STORE])
    return Site(standin, ec2, snapshots[0], volumes[0], instances[0], snapshots[1], volumes[1], *instances[1:])


def born(kind: str) -> dict[str, Any]:
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": [OURS]}]}


Call = Callable[[Any, Any, Site], object]
# What is done, and who may.
CALLS: dict[str, tuple[Call, set[str]]] = {
    "see snapshots": (lambda ec2, ebs, s: ec2.describe_snapshots(OwnerIds=["self"]), {"publisher", "node", "operator"}),
    "see volumes": (lambda ec2, ebs, s: ec2.describe_volumes(), {"node", "operator"}),
    "see instances": (lambda ec2, ebs, s: ec2.describe_instances(), {"operator"}),
    "begin a snapshot": (lambda ec2, ebs, s: ebs.start_snapshot(VolumeSize=1, Tags=[OURS]), {"publisher", "operator"}),
    "begin an untagged snapshot": (lambda ec2, ebs, s: ebs.start_snapshot(VolumeSize=1), set()),
    "begin a child": (
        lambda ec2, ebs, s: ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=s.snapshot, Tags=[OURS]),
        {"publisher", "operator"},
    ),
    "begin a stranger's child": (
        lambda ec2, ebs, s: ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=s.strangers_snapshot, Tags=[OURS]),
        set(),
    ),
    "list blocks": (lambda ec2, ebs, s: ebs.list_snapshot_blocks(SnapshotId=s.snapshot), {"publisher", "operator"}),
    "list a stranger's blocks": (lambda ec2, ebs, s: ebs.list_snapshot_blocks(SnapshotId=s.strangers_snapshot), set()),
    "snapshot a volume": (
        lambda ec2, ebs, s: ec2.create_snapshot(VolumeId=s.volume, **born("snapshot")),
        {"operator"},
    ),
    "snapshot a volume without a tag": (lambda ec2, ebs, s: ec2.create_snapshot(VolumeId=s.volume), set()),
    "snapshot a stranger's volume": (
        lambda ec2, ebs, s: ec2.create_snapshot(VolumeId=s.strangers_volume, **born("snapshot")),
        set(),
    ),
    "delete a snapshot": (lambda ec2, ebs, s: ec2.delete_snapshot(SnapshotId=s.snapshot), {"operator"}),
    "delete a stranger's snapshot": (lambda ec2, ebs, s: ec2.delete_snapshot(SnapshotId=s.strangers_snapshot), set()),
    "make a volume": (
        lambda ec2, ebs, s: make_volume(ec2, SnapshotId=s.snapshot, **born("volume")),
        {"node", "operator"},
    ),
    "make a volume of a stranger's snapshot": (
        lambda ec2, ebs, s: make_volume(ec2, SnapshotId=s.strangers_snapshot, **born("volume")),
        set(),
    ),
    "make a volume without a tag": (lambda ec2, ebs, s: make_volume(ec2, SnapshotId=s.snapshot), set()),
    "attach": (
        lambda ec2, ebs, s: ec2.attach_volume(VolumeId=s.volume, InstanceId=s.instance, Device="/dev/sdf"),
        {"node", "operator"},
    ),
    "attach a stranger's volume": (
        lambda ec2, ebs, s: ec2.attach_volume(VolumeId=s.strangers_volume, InstanceId=s.instance, Device="/dev/sdf"),
        set(),
    ),
    "attach to a stranger": (
        lambda ec2, ebs, s: ec2.attach_volume(VolumeId=s.volume, InstanceId=s.strangers_instance, Device="/dev/sdf"),
        set(),
    ),
    "delete a volume": (lambda ec2, ebs, s: ec2.delete_volume(VolumeId=s.volume), {"node", "operator"}),
    "delete a stranger's volume": (lambda ec2, ebs, s: ec2.delete_volume(VolumeId=s.strangers_volume), set()),
    "tag a snapshot": (
        lambda ec2, ebs, s: ec2.create_tags(Resources=[s.snapshot], Tags=[{"Key": "a", "Value": "b"}]),
        {"publisher", "operator"},
    ),
    "tag a stranger's snapshot": (
        lambda ec2, ebs, s: ec2.create_tags(Resources=[s.strangers_snapshot], Tags=[{"Key": "a", "Value": "b"}]),
        set(),
    ),
    "tag an instance": (
        lambda ec2, ebs, s: ec2.create_tags(Resources=[s.instance], Tags=[{"Key": "a", "Value": "b"}]),
        {"operator"},
    ),
    "tag a stranger's volume": (
        lambda ec2, ebs, s: ec2.create_tags(Resources=[s.strangers_volume], Tags=[{"Key": "a", "Value": "b"}]),
        set(),
    ),
    "end an instance": (lambda ec2, ebs, s: ec2.terminate_instances(InstanceIds=[s.instance]), {"operator"}),
    "tag an instance of another store": (
        lambda ec2, ebs, s: ec2.create_tags(Resources=[s.other_stores_instance], Tags=[OUR_STORE]),
        set(),
    ),
    "end an instance of another store": (
        lambda ec2, ebs, s: ec2.terminate_instances(InstanceIds=[s.other_stores_instance]),
        set(),
    ),
    "start an instance of another store": (
        lambda ec2, ebs, s: run(
            ec2,
            IamInstanceProfile={"Name": "boxlink-node"},
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [OURS, OTHER_STORE]},
                {"ResourceType": "volume", "Tags": [OURS]},
            ],
        ),
        set(),
    ),
    "end a stranger": (lambda ec2, ebs, s: ec2.terminate_instances(InstanceIds=[s.strangers_instance]), set()),
    "start an instance": (
        lambda ec2, ebs, s: run(
            ec2,
            IamInstanceProfile={"Name": "boxlink-node"},
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [OURS, OUR_STORE]},
                {"ResourceType": "volume", "Tags": [OURS]},
            ],
        ),
        {"operator"},
    ),
    "start an instance without tags": (lambda ec2, ebs, s: run(ec2), set()),
}


@pytest.mark.parametrize("what", CALLS)
def test_each_role_may_do_what_is_its_own(site: Site, what: str) -> None:
    """What is allowed is stopped just before it is done, so that each role finds the same."""
    call, allowed = CALLS[what]
    before = site.standin.resources()
    for role in ROLES:
        if role in allowed:
            site.standin.script.fail("*", Refused("Allowed", ""))
        word = "Allowed" if role in allowed else "UnauthorizedOperation|AccessDeniedException"
        with pytest.raises(ClientError, match=word):
            call(site.as_role(role, "ec2"), site.as_role(role, "ebs"), site)
    assert site.standin.resources() == before


@pytest.mark.parametrize("what", CALLS)
def test_each_call_is_one_that_works(site: Site, what: str) -> None:
    """Otherwise it would be no wonder that it is refused."""
    call, _ = CALLS[what]
    call(site.admin, client(site.standin, "ebs"), site)


def test_instance_may_not_be_given_another_role(site: Site) -> None:
    site.standin.instances.profiles.add("administrator")
    tags = [{"ResourceType": kind, "Tags": [OURS, OUR_STORE]} for kind in ("instance", "volume")]
    with refused("UnauthorizedOperation"):
        run(site.as_role("operator", "ec2"), IamInstanceProfile={"Name": "administrator"}, TagSpecifications=tags)


def test_tag_of_birth_cannot_be_given_later(site: Site) -> None:
    """Otherwise a node could make a stranger's volume its own, and delete it."""
    for role in ("node", "operator"):
        with refused("UnauthorizedOperation"):
            site.as_role(role, "ec2").create_tags(Resources=[site.strangers_volume], Tags=[OURS])


def driver_of(site: Site, role: str) -> EbsDriver:
    clock = site.standin.clock
    return EbsDriver(site.as_role(role, "ec2"), site.as_role(role, "ebs"), clock, SeededEntropy(1))


def test_the_drivers_own_calls_are_enough(site: Site) -> None:
    """A publisher's snapshot becomes a node's volume; an operator prunes."""
    clock, entropy = site.standin.clock, SeededEntropy(2)
    publisher, node, operator = (driver_of(site, role) for role in ("publisher", "node", "operator"))
    blocks = publisher.blocks()
    started = blocks.start(size_gib=1, parent_id=site.snapshot, token="t", tags={"boxlink:dataset": "covers"})
    digest = blocks.put(started.id, 1, block(2))
    blocks.complete(started.id, changed_count=1, checksum=hashlib.sha256(digest).digest())
    publisher.tag(started.id, {"boxlink:complete": "1"})
    wait_until(publisher.snapshots, [started.id], snapshot_is_completed, clock=clock, entropy=entropy, deadline_s=60)
    assert list(blocks.changed(site.snapshot, started.id)) == [1]
    assert blocks.get(started.id, 1) == block(2)

    [found] = node.snapshots(tags={"boxlink:complete": "1"})
    volume = node.create_volume(size_gib=1, zone="eu-central-1a", token="v", tags={}, snapshot_id=found.id)

    def wait(state: VolumeState) -> None:
        wait_until(node.volumes, [volume.id], volume_is(state), clock=clock, entropy=entropy, deadline_s=60)

    wait(VolumeState.AVAILABLE)
    node.attach(volume.id, site.instance)
    wait(VolumeState.IN_USE)
    with pytest.raises(Invalid, match="UnauthorizedOperation"):
        node.snapshot(volume.id, token="s", tags={})
    made = operator.snapshot(volume.id, token="s", tags={})
    for _ in range(2):
        operator.delete_snapshot(made.id)
    node.detach(volume.id, site.instance)
    wait(VolumeState.AVAILABLE)
    for _ in range(2):
        node.delete_volume(volume.id)
        clock.advance(60)
