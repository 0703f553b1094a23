"""`boxlink upgrade --swap` and `--pause` of instances, as commands with an operator's rights: volumes are swapped while
their nodes serve, what was paused stands still until the command that it printed goes on with it, and nothing is paid
for twice."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from synclib.core.snapshot_tags import IN_USE
from tests.aws.policies import policy_document
from tests.aws.test_ec2_snapshot_upgrade import downs, is_paid_for, rigged_with_volumes, snapshot
from tests.aws.test_ec2_upgrade import Rig
from tests.aws.test_upgrade_command import words
from tests.fleet import Load, asks, drawn, until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command

STILL_S = 3.0


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged_with_volumes(tmp_path_factory.mktemp("paused")) as rig:
        who = rig.standin.identity("operator", policy_document("operator", f"file://{rig.fleet.store}"))
        rig.fleet._environ.update(rig.standin.environment(who))
        rig.launch(snapshot(rig))
        yield rig


class Running:
    """A command that goes on beside us."""

    def __init__(self, rig: Rig, command: list[str]) -> None:
        self._process = subprocess.Popen(
            [*boxlink_command(), *command, "--json"], env=rig.fleet._environ, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self) -> dict[str, Any]:
        out, said = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, out.decode() + said.decode()
        found = json.loads(out)
        assert isinstance(found, dict)
        return found


def phases(found: dict[str, Any]) -> list[str]:
    return [step["phase"] for step in found["steps"]]


def paused(rig: Rig, command: list[str], phase: str) -> dict[str, Any]:
    """What the command says that was paused by another once its first node was in a phase."""
    running = Running(rig, command)

    def is_there() -> bool:
        opened = rig.journal.open_of("render")
        return opened is not None and opened.rollout.steps[0].phase == phase

    until(is_there, f"the first node is {phase}", 60)
    by_another = rig.fleet.boxlink("upgrade", "render", "--pause")
    found = running.end()
    assert (by_another["state"], found["state"]) == ("paused", "paused")
    assert phases(found)[1] == "waiting", "the second node was not begun"
    return found


def gone_on(rig: Rig, found: dict[str, Any]) -> dict[str, Any]:
    """By the command that was printed."""
    name, *command = shlex.split(found["goes_on_with"])
    assert name == "boxlink"
    return Running(rig, command).end()


def in_use(rig: Rig) -> dict[str, str]:
    """Which upgrade needs which snapshot."""
    with rig.standin.locked():
        tags = {name: record.tags.get(IN_USE, "") for name, record in rig.standin.snapshots.records.items()}
    return {name: tag for name, tag in tags.items() if tag}


def test_volumes_are_swapped_and_it_is_paused_between(rig: Rig) -> None:
    olds = rig.live()
    instances = sorted(rig.machines.running)
    rig.fleet.publish({b"notes.txt": b"to be swapped"})
    wanted = snapshot(rig)
    command = [*words(rig, wanted), "--swap"]
    wall = str(rig.proxy.get("/wall.json").json()["wall"])
    with Load(rig.proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        found = paused(rig, command, "starting")
        asked = sorted(path.name for path in (rig.fleet.store / "swap").iterdir())
        time.sleep(STILL_S)
        assert sorted(path.name for path in (rig.fleet.store / "swap").iterdir()) == asked, "nobody else was asked"
        former = found["steps"][0]["old"]["snapshot"]
        assert in_use(rig) == dict.fromkeys((former, wanted), found["id"]), "a paused upgrade needs both"
        done = gone_on(rig, found)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert (done["id"], done["state"], phases(done)) == (found["id"], "done", ["done", "done"])
    assert done["steps"][1]["downtime_ms"], "its port was probed"
    assert rig.live() == olds
    assert sorted(rig.machines.running) == instances, "the instances go on"
    seq = done["steps"][0]["new"]["pins"]["covers"]
    assert [down["reason"] for down in downs(rig)] == [f"from snapshot {wanted}, seq {seq}"] * 2
    paid = [*(("instance", node) for node in olds), *(("volume", f"{wanted} of {node}") for node in olds)]
    until(lambda: is_paid_for(rig) == paid, "no volume is paid for twice")
    assert [spec.pins for spec in rig.instances.running("render")] == [{"covers": seq}] * 2, "they say where they stay"
    assert in_use(rig) == {}
    assert rig.fleet.boxlink(*command)["id"] is None, "it is so already"


def test_instances_are_replaced_and_it_is_paused_between(rig: Rig) -> None:
    olds = rig.live()
    rig.fleet.publish({b"notes.txt": b"to be rolled"})
    wanted = snapshot(rig)
    wall = str(rig.proxy.get("/wall.json").json()["wall"])
    with Load(rig.proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        found = paused(rig, words(rig, wanted), "starting")
        ran, started = rig.live(), rig.standin.requests["RunInstances"]
        assert set(olds) <= set(ran), "no node ends while it is paused"
        time.sleep(STILL_S)
        assert (rig.live(), rig.standin.requests["RunInstances"]) == (ran, started)
        assert in_use(rig) == {wanted: found["id"]}
        done = gone_on(rig, found)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert (done["id"], done["state"], phases(done)) == (found["id"], "done", ["done", "done"])
    news = rig.live()
    assert news == [step["new"]["node"] for step in done["steps"]]
    paid = [*(("instance", node) for node in news), *(("volume", f"{wanted} of {node}") for node in news)]
    until(lambda: is_paid_for(rig) == paid, "the new fleet and nothing else")
    assert in_use(rig) == {}
