"""kill -9 of `boxlink upgrade` while it takes an upgrade back, with an operator's rights: at each kind of request that
it makes, each time that the fleet stands otherwise; at what changes anything, before and after it is carried out. The
same command again ends it, and what is there and paid for is the old fleet and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.rollout import State
from synclib.core.snapshot_tags import IN_USE
from tests.aws.instances import InstanceRecord
from tests.aws.policies import policy_document
from tests.aws.refusal import NoAnswer
from tests.aws.test_ec2_snapshot_upgrade import is_paid_for, rigged_with_volumes, snapshot
from tests.aws.test_ec2_upgrade import Rig
from tests.aws.test_upgrade_command import words
from tests.e2e.test_fleet import changed
from tests.fleet import until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command

RUNS_MAX = 60
TAKEN_BACK = 13
NEVER_READY = "render-000001-2"
# How often the fleet was changed before, what is asked for, whether it is carried out already.
Point = tuple[int, str, bool]


class Killer:
    """Ends the command at each point once. Only what it asks while it takes back counts."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._changes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.points: list[Point] = []

    def run(self, command: list[str]) -> tuple[int, str]:
        """(exit code, what it said)."""
        with self._rig.standin.locked():
            self._process = subprocess.Popen(
                [*boxlink_command(), *command], env=self._rig.fleet._environ, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )  # fmt: skip
            self._rig.standin.script.reached = self._reached
        _, said = self._process.communicate(timeout=150)
        self._rig.standin.script.reached = lambda operation, is_done: None
        return self._process.returncode, said.decode()

    def _reached(self, operation: str, is_done: bool) -> None:
        if self._rig.standin.script.caller != "operator":
            return
        opened = self._rig.journal.open_of("render")
        if opened is None or opened.rollout.state is not State.ROLLING_BACK:
            return
        point = (self._changes, operation, is_done)
        is_change = not operation.startswith("Describe")
        # Who goes on says again at a snapshot that it is needed, and at the end that it is not: that would have no end.
        if is_change and is_done and operation != "CreateTags":
            self._changes += 1
        if point not in self.points and (is_change or not is_done):
            self.points.append(point)
            assert self._process is not None
            self._process.kill()
            raise NoAnswer


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rigged_with_volumes(tmp_path) as rig:
        who = rig.standin.identity("operator", policy_document("operator", f"file://{rig.fleet.store}"))
        rig.fleet._environ.update(rig.standin.environment(who))
        yield rig


def end_at_start(rig: Rig, node: str) -> None:
    """The programs of a node's instance end as soon as they are started."""
    started = rig.standin.instances.started

    def start(record: InstanceRecord) -> None:
        started(record)
        if record.tags["boxlink:node"] == node:
            rig.machines.running[record.id].process.kill()

    rig.standin.instances.started = start


def serving(rig: Rig) -> list[str]:
    """The nodes that the proxy sends requests to."""
    found = rig.proxy.backends().values()
    return sorted(str(one["node"]) for one in found if one["state"] == "active" and not one["ejected"])


def test_killed_at_each_request_while_it_takes_back(rig: Rig) -> None:
    """The first node was replaced and comes back as another instance; the second one's new node never serves."""
    first = snapshot(rig)
    rig.launch(first)
    end_at_start(rig, NEVER_READY)
    rig.fleet.publish(changed(small_wall(10)))
    second = snapshot(rig)
    command = [*words(rig, second), "--ready-within", "25"]
    killer = Killer(rig)
    for _ in range(RUNS_MAX):
        code, said = killer.run(command)
        if code >= 0:
            break
    assert code == TAKEN_BACK, said
    assert f"{NEVER_READY} " in said
    killed_at = {operation for _, operation, _ in killer.points}
    assert {"DescribeInstances", "TerminateInstances", "RunInstances", "DeleteVolume", "CreateTags"} <= killed_at
    olds = [("instance", "render-1"), ("instance", "render-2"), ("volume", f"{first} of render-2")]
    until(lambda: is_paid_for(rig) == olds, "the old fleet and nothing else")
    assert [record.status.state for record in rig.standin.instances.records.values()].count("running") == 2
    until(lambda: serving(rig) == ["render-1", "render-2"], "and it serves")
    with rig.standin.locked():
        tags = [record.tags.get(IN_USE, "") for record in rig.standin.snapshots.records.values()]
    assert not any(tags), "nobody needs any of them"
