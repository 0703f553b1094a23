"""What an instance was told by ``--set``: its tags say it, so that an upgrade need not be told again."""

from __future__ import annotations

import pytest

from synclib.clock import SeededEntropy
from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec
from synclib.errors import Invalid
from synclib.store.memory import MemoryStore
from synclib.volume.aws_calls import Calls
from tests.aws.clients import client
from tests.aws.requests import IMAGE
from tests.aws.standin import Standin
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.instance_request import Start, requests, user_data
from tools.fleet.readiness import Readiness
from tools.fleet.settings_tags import settings_of, settings_tags


def machine_of(standin: Standin) -> Machine:
    return Machine(IMAGE, ("c7g.large",), tuple(standin.instances.subnets)[:1])


def fleet_of(standin: Standin, machine: Machine | None = None) -> Ec2Fleet:
    calls = Calls(standin.clock, SeededEntropy(1))
    return Ec2Fleet(client(standin, "ec2"), Readiness(MemoryStore(), None), machine, "s3://bucket", calls)


@pytest.mark.parametrize("values", [{}, {"dataset": "covers"}, {"listen": "[::]:80", "note": "a=b c", "empty": ""}])
def test_a_node_is_started_again_as_it_was(standin: Standin, values: dict[str, str]) -> None:
    spec = NodeSpec(node="render-1", role="render", release="fleet@1", pins={"covers": 4}, values=values)
    fleet_of(standin, machine_of(standin)).start(spec)
    # By another operator, who was told nothing.
    other = fleet_of(standin)
    [found] = other.running("render")
    assert found == spec.model_copy(update={"machine": machine_of(standin)})
    other.drain(found)
    standin.clock.sleep(600)
    other.start(found)
    assert other.running("render") == [found]
    assert len(standin.instances.records) == 2


def test_a_node_of_no_known_machine_is_not_started(standin: Standin) -> None:
    spec = NodeSpec(node="render-1", role="render", release="fleet@1")
    for act in (fleet_of(standin).check, fleet_of(standin).start):
        with pytest.raises(Invalid, match="what machine"):
            act(spec)
    assert not standin.instances.records


def test_where_it_stays_is_said_anew(standin: Standin) -> None:
    fleet = fleet_of(standin, machine_of(standin))
    spec = NodeSpec(node="render-1", role="render", release="fleet@1", pins={"covers": 4})
    fleet.start(spec)
    fleet.note_pins(spec.model_copy(update={"pins": {"covers": 5}}))
    assert fleet.running("render")[0].pins == {"covers": 5}


def test_volumes_do_not_carry_them() -> None:
    start = Start("render-1", "render", "s3://bucket", "fleet@1", values={"dataset": "covers"})
    [request] = requests(Machine(IMAGE, ["c7g.large"]), start)
    by_kind = {each["ResourceType"]: {tag["Key"] for tag in each["Tags"]} for each in request["TagSpecifications"]}  # type: ignore[attr-defined]
    assert "boxlink:set:dataset" in by_kind["instance"]
    assert "boxlink:set:dataset" not in by_kind["volume"]


def test_a_start_from_a_snapshot_is_in_the_user_data() -> None:
    start = Start("render-1", "render", "s3://bucket", "fleet@1", pins={"covers": 2}, is_from_snapshot=True)
    assert '"--seq", "covers=2", "--from", "snapshot"]' in user_data(start)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({f"n{number}": "x" for number in range(25)}, "24"),
        ({"note": "x" * 257}, "no value for an instance"),
        ({"note": "two\nlines"}, "no value for an instance"),
        ({"n" * 101: "x"}, "no value for an instance"),
        ({"db_password": "x"}, "looks like a secret"),
        ({"api_token": "x"}, "looks like a secret"),
        ({"note": "AKIAIOSFODNN7EXAMPLE"}, "looks like a secret"),
    ],
)
def test_what_tags_cannot_hold_or_shall_not(values: dict[str, str], what: str) -> None:
    with pytest.raises(Invalid, match=what):
        settings_tags(values)


def test_a_tag_that_no_launch_writes_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match="is no setting"):
        settings_of({"boxlink:set:a b": "x"})
    with pytest.raises(Invalid, match="looks like a secret"):
        settings_of({"boxlink:set:password": "x"})
