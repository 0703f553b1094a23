"""Two stores in one account and region, with the same roles and nodes of the same names: neither sees, counts or ends
what is the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Phase, State
from synclib.core.snapshot_tags import STORE
from synclib.store.memory import MemoryStore
from synclib.volume.aws_calls import Calls
from tests.aws.clients import client
from tests.aws.policies import policy_document
from tests.aws.requests import IMAGE, KIND, refused
from tests.aws.standin import Standin
from tests.aws.test_ec2_taken_back import Operator, begun, live, rollout, serving, spec
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.readiness import Readiness

PRODUCTION, STAGING = "s3://covers-bucket/fleet", "s3://covers-bucket/staging"


def fleet_of(standin: Standin, store: str, ec2: Any = None) -> Ec2Fleet:
    machine = Machine(IMAGE, [KIND], list(standin.instances.subnets)[:1])
    calls = Calls(standin.clock, SeededEntropy(1))
    return Ec2Fleet(ec2 or client(standin, "ec2"), Readiness(MemoryStore(), None), machine, store, calls)


@pytest.mark.parametrize("other", [STAGING, "s3://covers-bucket/fleet2", "file:///srv/" + "long/" * 80, "s3://é"])
def test_each_sees_and_ends_its_own(standin: Standin, other: str) -> None:
    ours, theirs = fleet_of(standin, PRODUCTION), fleet_of(standin, other)
    for fleet in (ours, theirs):
        for node in ("render-1", "render-2"):
            fleet.start(spec(node))
    assert len(standin.instances.records) == 4, "one name is one node in each store"
    theirs.start(spec("render-3"))
    standin.clock.advance(60)
    assert [each.node for each in ours.running("render")] == ["render-1", "render-2"]
    assert not ours.look([spec("render-3")])["render-3"].is_there
    ours.note_pins(spec("render-2").model_copy(update={"pins": {"covers": 7}}))
    assert [each.pins for each in theirs.running("render")] == [{}] * 3
    ours.drain(spec("render-1"))
    ours.drain(spec("render-3"))
    assert ours.clear([spec("render-2"), spec("render-3")]) != []
    standin.clock.advance(60)
    assert ours.running("render") == []
    assert [each.node for each in theirs.running("render")] == ["render-1", "render-2", "render-3"]


def test_a_store_is_the_same_one_with_a_slash_behind_it(standin: Standin) -> None:
    fleet_of(standin, PRODUCTION).start(spec("render-1"))
    assert [each.node for each in fleet_of(standin, f"{PRODUCTION}/").running("render")] == ["render-1"]


def test_an_upgrade_ends_no_namesake_of_another_store(standin: Standin, tmp_path: Path) -> None:
    store = MemoryStore()
    who = Operator(standin, store, tmp_path)
    olds = begun(standin, who, 1)
    other = fleet_of(standin, STAGING)
    for node in ("render-0", "new-0"):
        other.start(spec(node))
    with serving(store, [*olds, "new-0"], "fleet@1"):
        assert who.driver.run(who.journal.create(rollout(1, Phase.WAITING))).state is State.DONE
    assert live(standin) == ["new-0", "new-0", "render-0"]
    assert [each.node for each in other.running("render")] == ["new-0", "render-0"]


def test_an_operators_rights_end_at_its_store(standin: Standin) -> None:
    ec2 = client(standin, "ec2", standin.identity("operator", policy_document("operator")))
    theirs = fleet_of(standin, STAGING)
    theirs.start(spec("render-1"))
    standin.clock.advance(60)
    [record] = standin.instances.records.values()
    assert record.tags[STORE] == STAGING
    with refused("UnauthorizedOperation"):
        ec2.terminate_instances(InstanceIds=[record.id])
    for key, value in ((STORE, PRODUCTION), ("boxlink:node", "render-9")):
        with refused("UnauthorizedOperation"):
            ec2.create_tags(Resources=[record.id], Tags=[{"Key": key, "Value": value}])
    with pytest.raises(Exception, match="UnauthorizedOperation"):
        fleet_of(standin, STAGING, ec2).start(spec("render-2"))
    ours = fleet_of(standin, PRODUCTION, ec2)
    ours.start(spec("render-1"))
    standin.clock.advance(60)
    ours.note_pins(NodeSpec(node="render-1", role="render", pins={"covers": 2}))
    ours.drain(spec("render-1"))
    assert [each.node for each in theirs.running("render")] == ["render-1"]
