"""Instances that begin from volumes of a snapshot, and that swap theirs for one of another: with a node's own rights,
by loop devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Phase, Rollout, State
from synclib.engine.rollout import Driver, plan
from tests.aws.clients import client
from tests.aws.loop_devices import loop_devices, why_not
from tests.aws.policies import policy_document
from tests.aws.records import REGION
from tests.aws.requests import IMAGE
from tests.aws.standin import Standin, running_standin
from tests.aws.test_ec2_upgrade import Rig, rigged
from tests.aws.test_snapshot_start import end_mounts
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE
from tests.fleet import Load, asks, drawn, until
from tests.pictures import small_wall
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.swap_fleet import SwapFleet, standing
from tools.lazy_probe import why_not_lazy


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rigged_with_volumes(tmp_path) as rig:
        yield rig


@contextmanager
def rigged_with_volumes(tmp_path: Path) -> Iterator[Rig]:
    if trouble := why_not() or why_not_lazy(tmp_path):
        pytest.skip(trouble)
    (tmp_path / "ebs.toml").write_text('[volume]\ndriver = "ebs"\n')
    role = ROLE.replace('"--poll", "0.5"', '"--poll", "0.5", "--no-hydrate"')
    with running_standin(tmp_path) as standin, loop_devices(standin, tmp_path / "images"):
        environ = {
            "BOXLINK_CONFIG": str(tmp_path / "ebs.toml"),
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_EC2": standin.endpoint,
            "AWS_ENDPOINT_URL_EBS": standin.endpoint,
        }
        with rigged(tmp_path, standin, environ, "boxlink-node", role) as rig:
            rig.fleet._environ.update(standin.environment())
            try:
                yield rig
            finally:
                # Its programs first: they would mount again what is not there.
                rig.machines.end_all()
                for directory in (tmp_path / "machines").iterdir():
                    end_mounts(directory)


def snapshot(rig: Rig) -> str:
    return str(rig.fleet.boxlink("snapshot", "create", "covers", "--driver", "ebs")["snapshot"])


def downs(rig: Rig) -> list[dict[str, Any]]:
    with rig.standin.locked():
        places = [machine.directory / "boxlink/data/covers/synch.down" for machine in rig.machines.running.values()]
    return [json.loads(place.read_text()) for place in places]


def volumes(standin: Standin) -> list[tuple[str, str]]:
    """(snapshot, instance) of each that there is."""
    with standin.locked():
        found = list(standin.volumes.records.values())
        return sorted((each.snapshot_id, each.attachment.instance_id if each.attachment else "") for each in found)


def swap(rig: Rig, snapshot_id: str, seq: int) -> Rollout:
    olds = [standing(rig.store, old, "covers") for old in rig.instances.running("render")]

    def new_of(old: NodeSpec) -> NodeSpec:
        return old.model_copy(update={"snapshot": snapshot_id, "pins": {"covers": seq}})

    name = rig.journal.find("render").next_id
    entry = rig.journal.create(plan(name, olds, new_of, 1, "", "", "covers"))
    fleet = SwapFleet(name, "covers", rig.store, rig.readiness, rig.instances.look, rig.host.clock)
    driver = Driver(rig.journal, fleet, rig.host, lambda text, _: print(text), ready_s_max=90, bake_s=0)
    done = driver.run(entry)
    fleet.keep(done)
    for step in done.steps:
        rig.instances.note_pins(step.new)
    return done


def is_paid_for(rig: Rig) -> list[tuple[str, str]]:
    """(kind, what): an instance by its node, a volume by the snapshot and the node that has it."""
    with rig.standin.locked():
        records = list(rig.standin.instances.records.values())
        names = {record.id: record.tags["boxlink:node"] for record in records}
        live = [("instance", names[record.id]) for record in records if record.status.state != "terminated"]
        held = [
            ("volume", f"{each.snapshot_id} of {names[each.attachment.instance_id] if each.attachment else 'nobody'}")
            for each in rig.standin.volumes.records.values()
        ]
        return sorted([*live, *held])


def as_operator(rig: Rig) -> None:
    """Who rolls has an operator's rights and no more (docs/iam/operator.json)."""
    who = rig.standin.identity("operator", policy_document("operator", f"file://{rig.fleet.store}"))
    machine = Machine(IMAGE, ["c7g.large"], list(rig.standin.instances.subnets)[:1], profile="boxlink-node")
    store = f"file://{rig.fleet.store}"
    rig.instances = Ec2Fleet(client(rig.standin, "ec2", who), rig.readiness, machine, store, rig.calls)


def strangers_volume(rig: Rig, snapshot_id: str, **tags: str) -> str:
    listed = [{"Key": name.replace("_", ":"), "Value": value} for name, value in tags.items()]
    made = rig.ec2.create_volume(
        AvailabilityZone="eu-central-1a",
        Size=1,
        VolumeType="gp3",
        SnapshotId=snapshot_id,
        TagSpecifications=[{"ResourceType": "volume", "Tags": listed}],
    )
    return str(made["VolumeId"])


def test_the_volumes_of_instances_that_were_rolled_away_go(rig: Rig) -> None:
    as_operator(rig)
    first = snapshot(rig)
    rig.launch(first)
    assert is_paid_for(rig) == [
        ("instance", "render-1"),
        ("instance", "render-2"),
        ("volume", f"{first} of render-1"),
        ("volume", f"{first} of render-2"),
    ]
    rig.fleet.publish(changed(small_wall(10)))
    second = snapshot(rig)
    store, ours = f"file://{rig.fleet.store}", "i-0123456789abcdef0"
    strangers = [
        strangers_volume(rig, first, boxlink_store="file:///other", boxlink_node=ours, boxlink_start=first),
        strangers_volume(rig, first, boxlink_store=store, boxlink_node="operator", boxlink_start=first),
        strangers_volume(rig, first, boxlink_store=store, boxlink_node=ours),
    ]
    done = rig.roll({"pins": {"covers": 2}, "snapshot": second})
    assert done.state is State.DONE
    for volume_id in strangers:
        rig.ec2.delete_volume(VolumeId=volume_id)  # each is still there
    news = [
        ("instance", "new-1"),
        ("instance", "new-2"),
        ("volume", f"{second} of new-1"),
        ("volume", f"{second} of new-2"),
    ]
    until(lambda: is_paid_for(rig) == news, "nothing of the old ones is paid for")


def test_the_volumes_of_instances_that_were_taken_back_go(rig: Rig) -> None:
    """The first one is replaced, and comes back as another instance; the second is never ready."""
    as_operator(rig)
    first = snapshot(rig)
    rig.launch(first)
    rig.fleet.publish(changed(small_wall(10)))
    new = {"pins": {"covers": 2}, "snapshot": snapshot(rig)}
    done = rig.roll(new, ready_s_max=25, more={"render-2": {"release": "fleet@9"}})
    assert done.state is State.ROLLED_BACK
    assert [step.new.node for step in done.steps if step.phase is Phase.UNDONE] == ["new-1", "new-2"]
    olds = [("instance", "render-1"), ("instance", "render-2"), ("volume", f"{first} of render-2")]
    until(lambda: is_paid_for(rig) == olds, "what began and ended between is not paid for")


def test_instances_begin_from_volumes_of_a_snapshot_and_swap_them(rig: Rig) -> None:
    rig.launch()
    rig.fleet.publish(changed(small_wall(10)))
    first = snapshot(rig)
    wall = str(rig.proxy.get("/wall.json").json()["wall"])
    with Load(rig.proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        done = rig.roll({"pins": {"covers": 2}, "snapshot": first})
    assert (done.state, load.failures, load.wrong, load.cut) == (State.DONE, [], [], [])
    assert [down["reason"] for down in downs(rig)] == [f"from snapshot {first}, seq 2"] * 2
    instances = sorted(rig.machines.running)
    assert volumes(rig.standin) == [(first, instance) for instance in instances]

    rig.fleet.publish({b"notes.txt": b"more"})
    second = snapshot(rig)
    with Load(rig.proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        swapped = swap(rig, second, 3)
    assert (swapped.state, load.failures, load.wrong, load.cut) == (State.DONE, [], [], [])
    assert [step.old.snapshot for step in swapped.steps] == [first, first]
    assert all(step.downtime_ms for step in swapped.steps), "their ports were probed"
    assert [down["reason"] for down in downs(rig)] == [f"from snapshot {second}, seq 3"] * 2
    until(lambda: volumes(rig.standin) == [(second, instance) for instance in instances], "nothing is paid twice")
    assert [spec.pins for spec in rig.instances.running("render")] == [{"covers": 3}] * 2, "they say where they stay"
    assert sorted(rig.machines.running) == instances, "the instances go on"
