"""`boxlink upgrade --snapshot`: new nodes begin from a volume of it, and say so."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.core.snapshot_tags import IN_USE, NODE
from synclib.volume.local import LocalDriver
from tests.conformance.local_volumes import end_pool
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE, Rolled, admin_of
from tests.fleet import Fleet, Load, asks, drawn, until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import nodes, remove, stop


@pytest.fixture
def rolled(tmp_path: Path) -> Iterator[Rolled]:
    fleet = Fleet(tmp_path)
    rolled = Rolled(fleet)
    pool = tmp_path / "pool"
    (tmp_path / "boxlink.toml").write_text(f'[volume]\ndriver = "local"\npool = "{pool}"\n')
    try:
        yield rolled
    finally:
        for node in nodes(rolled.place):
            stop(node, 20)
            remove(node)
        fleet.close()
        end_pool(pool)


def test_nodes_are_rolled_to_a_snapshot(rolled: Rolled) -> None:
    fleet = rolled.fleet
    # What is whole here lets its volume go.
    rolled.role.write_text(ROLE.replace('"--poll", "0.5"', '"--poll", "0.5", "--no-hydrate"'))
    fleet.publish(small_wall(10))
    rolled.launch(2)
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active"] * 2, "both are found")
    fleet.publish(changed(small_wall(10)))
    snapshot = rolled.boxlink("snapshot", "create", "covers")["snapshot"]
    fleet.publish({b"later.jpg": b"no picture"})
    wall = proxy.get("/wall.json").json()["wall"]
    words = rolled.upgrade_words(admin_of(proxy), "--snapshot", snapshot)
    with Load(proxy.port, asks(str(wall), drawn(small_wall(10)))) as load:
        process = subprocess.Popen(
            [*boxlink_command(), *words, "--json"],
            env=rolled.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert any("is started" in line for line in process.stderr)
        [found] = LocalDriver(rolled.fleet.root / "pool", SystemClock()).snapshots([snapshot])
        assert found.tags[IN_USE] == "render-000001", "while it is under way it is not pruned"
        # A newer one comes, and another role's upgrade to this one ends.
        process.send_signal(signal.SIGSTOP)
        newest = rolled.boxlink("snapshot", "create", "covers")["snapshot"]
        driver = LocalDriver(rolled.fleet.root / "pool", SystemClock())
        driver.tag(snapshot, {IN_USE: ""})
        pruned = rolled.boxlink("snapshot", "prune", "covers", "--keep-last", "1")
        assert (pruned["deleted"], len(pruned["kept"])) == ([], 2)
        driver.tag(snapshot, {IN_USE: "render-000001"})
        process.send_signal(signal.SIGCONT)
        done = json.loads(process.communicate()[0])
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert done["state"] == "done"
    assert proxy.get("/wall.json").json()["seq"] == 2
    for node in nodes(rolled.place):
        down = json.loads((node.data / "covers/synch.down").read_text())
        assert (down["seq"], down["mode"]) == (2, "lazy")
        assert f"from snapshot {snapshot}, seq 2" in down["reason"]
    assert rolled.boxlink(*words)["id"] is None, "every node is so already"
    assert driver.snapshots([snapshot])[0].tags.get(IN_USE) == ""
    assert {volume.snapshot_id for volume in driver.volumes()} == {snapshot}
    _rolled_on(rolled, admin_of(proxy), newest)
    assert rolled.boxlink("snapshot", "prune", "covers", "--keep-last", "1")["deleted"][0]["snapshot"] == snapshot
    unknown = rolled.boxlink(*rolled.upgrade_words(admin_of(proxy), "--snapshot", "snap-00000000"), code=10)
    assert "there is no snapshot" in unknown["error"]["message"]


def _rolled_on(rolled: Rolled, admin: str, second: str) -> None:
    """To another snapshot, by a command that is killed when the last old node has ended: the same again lets go what
    the old ones had."""
    driver = LocalDriver(rolled.fleet.root / "pool", SystemClock())
    source = driver.create_volume(size_gib=1, zone="local", token="a stranger's", tags={NODE: "render-000001-1"})
    words = rolled.upgrade_words(admin, "--snapshot", second)
    process = subprocess.Popen([*boxlink_command(), *words], env=rolled.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as lines:
        assert any("render-000001-2 has ended" in line for line in lines)
        process.kill()
    process.wait()
    rolled.boxlink(*words)
    assert rolled.names() == ["render-000002-1", "render-000002-2"]
    held = {volume.tags[NODE]: volume for volume in driver.volumes() if volume.id != source.id}
    assert sorted(held) == rolled.names(), "the old ones' volumes went with them"
    assert {volume.snapshot_id for volume in held.values()} == {second}
    assert driver.volumes([source.id]), "one that no node was given is nobody's to delete"
