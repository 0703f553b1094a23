"""kill -9 at each request, just before it is done and just after: the same program again finishes, and nothing is there
or paid for twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.aws import killed_snapshot
from tests.aws.refusal import NoAnswer
from tests.aws.requests import block
from tests.aws.standin import Standin, running_standin

PACE = 100.0  # the service's seconds in one of the machine's


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with running_standin(tmp_path, pace=PACE) as standin:
        yield standin


@contextmanager
def program(standin: Standin, name: str) -> Iterator[subprocess.Popen[bytes]]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.aws.{name}"],
        env={**own, **standin.environment()},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(standin: Standin, name: str) -> str:
    with program(standin, name) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


def run_killed(standin: Standin, name: str, operation: str, count: int, *, is_done: bool) -> None:
    """Kill the program at its ``count``th request of a kind; ``is_done``: when it is carried out already."""
    left = [count]

    def reached(now: str, done: bool) -> None:
        if (now, done) == (operation, is_done):
            left[0] -= 1
            if left[0] == 0:
                process.kill()
                raise NoAnswer

    standin.script.reached = reached
    with program(standin, name) as process:
        process.communicate(timeout=120)
    standin.script.reached = lambda operation, is_done: None
    assert left == [0], "the program ended before it came there"
    assert process.returncode < 0


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(
    ("operation", "count"),
    [
        ("StartSnapshot", 1),
        ("PutSnapshotBlock", 1),
        ("PutSnapshotBlock", 4),
        ("PutSnapshotBlock", killed_snapshot.COUNT),
        ("CompleteSnapshot", 1),
        ("DescribeSnapshots", 1),
        ("CreateTags", 1),
    ],
)
def test_snapshot(standin: Standin, operation: str, count: int, is_done: bool) -> None:
    run_killed(standin, "killed_snapshot", operation, count, is_done=is_done)
    snapshot_id = run(standin, "killed_snapshot")
    [resource] = standin.resources()
    assert (resource.id, resource.state) == (snapshot_id, "completed")
    assert resource.tags["boxlink:complete"] == "1"
    with standin.locked():
        blocks = standin.snapshots.records[snapshot_id].blocks()
        held = {index: standin.site.blocks.read(each) for index, each in blocks.items()}
    assert held == {index: block(index) for index in range(killed_snapshot.COUNT)}


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("is_first_zone_full", [False, True])
def test_launch(standin: Standin, is_done: bool, is_first_zone_full: bool) -> None:
    """Where the first zone is full and has room again by the second run, it is the second zone's that is found."""
    if is_first_zone_full:
        standin.script.exhausted.add("eu-central-1a")
    run_killed(standin, "killed_launch", "RunInstances", 1, is_done=is_done)
    standin.script.exhausted.clear()
    instance_id = run(standin, "killed_launch")
    with standin.locked():
        assert list(standin.instances.records) == [instance_id]


def test_launch_killed_while_it_waits_and_ends(standin: Standin) -> None:
    run_killed(standin, "killed_launch", "DescribeInstances", 3, is_done=True)
    run_killed(standin, "killed_launch", "TerminateInstances", 1, is_done=False)
    run(standin, "killed_launch")
    with standin.locked():
        assert len(standin.instances.records) == 1
