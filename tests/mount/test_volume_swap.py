"""`boxlink upgrade --swap`: a node lets its volume go, goes on with one of another snapshot, and runs all the while."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SystemClock
from synclib.core.names import swap_key
from synclib.volume.base import Volume, VolumeState
from synclib.volume.local import LocalDriver
from tests.conformance.local_volumes import end_pool
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE, Rolled, admin_of
from tests.fleet import Fleet, Load, Proxy, asks, drawn, until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import is_alive, nodes, remove, stop

NODE = "render-000001-1"


class Site:
    """One node that stands on a volume of the first snapshot; a second snapshot is there, of seq 2."""

    def __init__(self, tmp_path: Path) -> None:
        self.fleet = Fleet(tmp_path)
        self.rolled = Rolled(self.fleet)
        self.pool = tmp_path / "pool"
        (tmp_path / "boxlink.toml").write_text(f'[volume]\ndriver = "local"\npool = "{self.pool}"\n')
        self.rolled.role.write_text(ROLE.replace('"--poll", "0.5"', '"--poll", "0.5", "--no-hydrate"'))

    def prepare(self) -> tuple[str, str]:
        """(first, second) snapshot."""
        rolled, fleet = self.rolled, self.fleet
        fleet.publish(small_wall(10))
        rolled.launch(1)
        until(lambda: len(fleet.registrations()) == 1, "it has registered")
        fleet.publish({b"notes.txt": b"no picture"})
        first = rolled.boxlink("snapshot", "create", "covers")["snapshot"]
        rolled.boxlink(*self.words("--snapshot", first))
        fleet.publish(changed(small_wall(10)))
        second = rolled.boxlink("snapshot", "create", "covers")["snapshot"]
        return first, second

    def words(self, *more: str) -> list[str]:
        return ["upgrade", "render", "--local", str(self.rolled.place), "--bake", "0", *more]

    def down(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.rolled.place / NODE / "data/covers/synch.down").read_text())
        return found

    def volumes(self) -> list[Volume]:
        return LocalDriver(self.pool, SystemClock()).volumes()

    def holds(self, snapshot: str) -> bool:
        """Whether one volume is attached, and it is of this snapshot."""
        return [v.snapshot_id for v in self.volumes() if v.state is VolumeState.IN_USE] == [snapshot]

    def processes(self) -> list[int]:
        [node] = nodes(self.rolled.place)
        assert is_alive(node)
        return [node.pid, *map(int, Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split())]

    def close(self) -> None:
        for node in nodes(self.rolled.place):
            stop(node, 20)
            remove(node)
        self.fleet.close()
        end_pool(self.pool)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("volumes are attached by root alone")
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()


def test_a_volume_is_swapped_while_its_node_serves(site: Site) -> None:
    first, second = site.prepare()
    fleet, rolled = site.fleet, site.rolled
    assert f"from snapshot {first}, seq 2" in site.down()["reason"]
    proxy: Proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active"], "it is found")
    wall = str(proxy.get("/wall.json").json()["wall"])
    before = site.processes()
    with Load(proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        load.wait(100)
        done = rolled.boxlink(*site.words("--snapshot", second, "--swap", "--proxy", admin_of(proxy)))
        load.wait(100)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert done["state"] == "done"
    [step] = done["steps"]
    assert (step["old"]["snapshot"], step["new"]["snapshot"]) == (first, second)
    assert step["downtime_ms"] > 0, "it was probed"
    assert proxy.get("/wall.json").json()["seq"] == 3
    assert f"from snapshot {second}, seq 3" in site.down()["reason"]
    assert site.processes() == before, "its processes go on"
    for path in sorted((fleet.source / "covers").rglob("*.jpg")):
        inside = path.relative_to(fleet.source / "covers")
        assert (rolled.place / NODE / "data/covers" / inside).read_bytes() == path.read_bytes()
    until(lambda: [v.snapshot_id for v in site.volumes()] == [second], "the former volume is not paid for")
    assert site.holds(second)
    assert rolled.boxlink(*site.words("--snapshot", second, "--swap"))["id"] is None, "it is so already"
    journal = json.loads((fleet.store / "upgrade/render-000002").read_bytes())
    assert journal["steps"][0]["downtime_ms"] == step["downtime_ms"]
    # Back again, by the same command.
    again = rolled.boxlink(*site.words("--snapshot", first, "--swap"))
    assert again["state"] == "done"
    assert site.down()["seq"] == 2


@pytest.mark.parametrize("mark", ["is asked", "done"])
def test_an_operator_who_is_killed_finishes_with_the_same_command(site: Site, mark: str) -> None:
    _, second = site.prepare()
    words = site.words("--snapshot", second, "--swap")
    process = subprocess.Popen(
        [*boxlink_command(), *words], env=site.rolled.environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as lines:
        assert any(mark in line for line in lines)
        process.kill()
    process.wait()
    done = site.rolled.boxlink(*words)
    assert done["state"] == "done" or done["id"] is None
    assert site.holds(second)
    assert site.down()["seq"] == 3
    until(lambda: [v.snapshot_id for v in site.volumes()] == [second], "the former volume is not paid for")


def test_a_snapshot_that_cannot_be_attached_brings_the_old_volume_back(site: Site) -> None:
    first, second = site.prepare()
    # What the snapshot's blocks hold is not what its tags say: it is seen when the new volume was attached.
    image = LocalDriver(site.pool, SystemClock()).image(second)
    with image.open("r+b") as file:
        file.write(bytes(4096))
    failed = site.rolled.boxlink(*site.words("--snapshot", second, "--swap"), code=13)
    assert "did not go on with the new volume" in failed["error"]["message"]
    assert "volume" in failed["error"]["message"]
    assert site.holds(first)
    assert site.down()["seq"] == 2
    until(lambda: [v.snapshot_id for v in site.volumes()] == [first], "the other volume is not paid for")
    wish = json.loads((site.fleet.store / swap_key(NODE)).read_bytes())
    assert (wish["snapshot"], wish["is_kept"]) == (first, True)


def test_a_node_without_a_volume_has_none_to_swap(site: Site) -> None:
    site.fleet.publish(small_wall(5))
    site.rolled.launch(1)
    until(lambda: len(site.fleet.registrations()) == 1, "it has registered")
    snapshot = site.rolled.boxlink("snapshot", "create", "covers")["snapshot"]
    refused = site.rolled.boxlink(*site.words("--snapshot", snapshot, "--swap"), code=13)
    assert "takes the bytes of covers from no volume" in refused["error"]["message"]
    nothing = site.rolled.boxlink(*site.words("--swap", "--seq", "covers=1"), code=2)
    assert "of which snapshot" in nothing["error"]["message"]
