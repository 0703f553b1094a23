"""kill -9 of `boxlink upgrade` at its service calls, with an operator's rights: the same command again finishes, and
what is there and paid for is the new fleet and nothing else. One node that begins from a volume is rolled on and on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from synclib.core.rollout import NodeSpec
from synclib.core.snapshot_tags import IN_USE
from tests.aws.policies import policy_document
from tests.aws.refusal import NoAnswer
from tests.aws.requests import IMAGE
from tests.aws.test_ec2_snapshot_upgrade import is_paid_for, rigged_with_volumes, snapshot
from tests.aws.test_ec2_upgrade import Rig
from tests.fleet import until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rigged_with_volumes(tmp_path_factory.mktemp("upgrade")) as rig:
        who = rig.standin.identity("operator", policy_document("operator", f"file://{rig.fleet.store}"))
        rig.fleet._environ.update(rig.standin.environment(who))
        first = snapshot(rig)
        spec = NodeSpec(node="render-1", role="render", release="fleet@1", pins={"covers": 1}, snapshot=first)
        rig.instances.start(spec)
        until(lambda: list(rig.proxy.states().values()) == ["active"], "it serves", 90)
        yield rig


def words(rig: Rig, snapshot_id: str) -> list[str]:
    subnet = next(iter(rig.standin.instances.subnets))
    machine = ["--image", IMAGE, "--type", "c7g.large", "--subnet", subnet, "--profile", "boxlink-node"]
    trust = ["--trust", f"{rig.key}.pub"]
    return ["upgrade", "render", "--snapshot", snapshot_id, "--driver", "ebs", *machine, *trust, "--bake", "0"]


def run_killed(rig: Rig, command: list[str], operation: str, count: int, *, is_done: bool) -> None:
    """At the operator's ``count``th request of a kind: just before it is carried out, or when it is done already."""
    left = [count]

    def reached(now: str, done: bool) -> None:
        if (now, done, rig.standin.script.caller) == (operation, is_done, "operator"):
            left[0] -= 1
            if left[0] == 0:
                process.kill()
                raise NoAnswer

    with rig.standin.locked():
        process = subprocess.Popen(
            [*boxlink_command(), *command], env=rig.fleet._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        rig.standin.script.reached = reached
    _, said = process.communicate(timeout=120)
    rig.standin.script.reached = lambda operation, is_done: None
    assert left[0] <= 0, f"the command ended before it came there: {said.decode()}"
    assert process.returncode < 0


# In the order in which an upgrade comes to them: each command goes past where the one before was killed, to the next.
CALLS = [
    ("CreateTags", 1),  # the journal is begun, and nothing else
    ("RunInstances", 1),
    ("DescribeInstances", 5),  # while it waits for the new node
    ("TerminateInstances", 1),
    ("DeleteVolume", 1),
    ("CreateTags", 1),  # all is done but to say that nobody needs the snapshot any more
]


@pytest.mark.parametrize("is_done", [False, True])
def test_killed_at_each_call_and_said_again(rig: Rig, is_done: bool) -> None:
    rig.fleet.publish({**small_wall(10), b"notes.txt": b"%d" % is_done})
    wanted = snapshot(rig)
    command = words(rig, wanted)
    for operation, count in CALLS:
        run_killed(rig, command, operation, count, is_done=is_done)
    done = rig.fleet.boxlink(*command)
    assert done["state"] == "done"
    [node] = rig.live()
    assert node == done["steps"][0]["new"]["node"]
    new = [("instance", node), ("volume", f"{wanted} of {node}")]
    until(lambda: is_paid_for(rig) == new, "the new fleet and nothing else")
    assert rig.fleet.boxlink(*command)["id"] is None, "it is so already"
    with rig.standin.locked():
        tags = [record.tags.get(IN_USE, "") for record in rig.standin.snapshots.records.values()]
    assert not any(tags), "nobody needs any of them"
    assert not (rig.fleet.store / "node" / done["steps"][0]["old"]["node"]).exists(), "nor what the old one said"
