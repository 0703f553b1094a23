"""`boxlink snapshot` on EBS: a publisher's rights are enough to make snapshots, kill -9 at each request leaves nothing
that is paid for twice, and what is whole is the same block for block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.boxlink_command import Publisher
from tests.aws.policies import policy_document
from tests.aws.standin import Standin, running_standin

pytest.importorskip("tools.cli.snapshot", reason="this boxlink has no snapshot verb")
PACE = 100.0


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with running_standin(tmp_path, pace=PACE) as standin:
        yield standin


@pytest.fixture
def publisher(standin: Standin, tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "publisher", standin, standin.identity("publisher", policy_document("publisher")))


def content(standin: Standin, snapshot_id: str) -> dict[int, bytes]:
    """The digest of each block that a snapshot holds."""
    with standin.locked():
        return {index: block.digest for index, block in standin.snapshots.records[snapshot_id].blocks().items()}


def test_second_snapshot_is_of_what_changed(standin: Standin, publisher: Publisher) -> None:
    first = publisher.create()
    assert publisher.create()["snapshot"] == first["snapshot"]
    assert standin.requests["StartSnapshot"] == 1
    publisher.write("more")
    publisher.run("publish", "covers", publisher.source)
    standin.requests.clear()
    second = publisher.create()
    assert (second["parent"], second["seq"]) == (first["snapshot"], 2)
    assert standin.requests["PutSnapshotBlock"] == second["put_blocks"] < first["put_blocks"]
    ids = [first["snapshot"], second["snapshot"]]
    assert [(each.id, each.state) for each in standin.resources()] == [(each, "completed") for each in ids]


def test_publisher_may_not_prune_and_an_operator_may(standin: Standin, publisher: Publisher) -> None:
    publisher.create()
    publisher.write("more")
    publisher.run("publish", "covers", publisher.source)
    newest = publisher.create()["snapshot"]
    words = ("snapshot", "prune", "covers", "--driver", "ebs", "--keep-last", "1")
    assert publisher.json(*words, code=2)["error"]["kind"] == "invalid"
    assert len(standin.resources()) == 2
    publisher.who = standin.identity("operator", policy_document("operator"))
    publisher.run(*words)
    assert [resource.id for resource in standin.resources()] == [newest]


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(
    ("operation", "count"),
    [
        ("StartSnapshot", 1),
        ("PutSnapshotBlock", 1),
        ("PutSnapshotBlock", 5),
        ("CompleteSnapshot", 1),
        ("CreateTags", 1),
    ],
)
def test_killed_and_run_again(
    standin: Standin, publisher: Publisher, tmp_path: Path, operation: str, count: int, is_done: bool
) -> None:
    publisher.run_killed(operation, count, "snapshot", "create", "covers", "--driver", "ebs", is_done=is_done)
    made = publisher.create()["snapshot"]
    [resource] = standin.resources()
    assert (resource.id, resource.state, resource.tags["boxlink:complete"]) == (made, "completed", "1")
    held = content(standin, made)
    with running_standin(tmp_path, pace=PACE) as fresh:
        publisher.standin = fresh
        publisher.place = tmp_path / "another"
        publisher.place.mkdir()
        publisher.who = None
        assert content(fresh, publisher.create()["snapshot"]) == held
