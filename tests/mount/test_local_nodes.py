"""Local nodes whose datasets are mounted: a mount outlives its node's processes, and goes with its directory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.disk.mounts import mounted_on
from tests.e2e.boxlink_process import Machine
from tests.e2e.test_launch import command_lines
from tests.e2e.test_up import until
from tests.mount.mounted import make_tree
from tools.fleet import local_nodes
from tools.fleet.local_nodes import Wish

ROLE = """
role = "lazy"
[[process]]
name = "sync"
run = ["boxlink", "sync", "--data", "{data}", "--lazy", "--no-hydrate", "--poll", "0.2"]
"""


def test_a_mount_outlives_up_and_goes_with_the_node(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    make_tree(tmp_path / "source")
    machine.run("init")
    machine.run("publish", "covers", "source")
    (tmp_path / "lazy.toml").write_text(ROLE)
    covers = tmp_path / "nodes/n/data/covers"
    covers.mkdir(parents=True)
    (covers / "synch.active").touch()
    wish, place = Wish(str(tmp_path / "lazy.toml")), tmp_path / "nodes"
    names = sorted(path.name for path in (tmp_path / "source").iterdir())

    def seen() -> list[str]:
        return sorted(path.name for path in covers.iterdir() if not path.name.startswith(("synch.", ".boxlink")))

    try:
        node, _ = local_nodes.start(place, "n", wish, machine.environment, SystemClock(), SystemEntropy())
        until((covers / "synch.down").exists)
        assert mounted_on(os.fsencode(covers))
        assert seen() == names
        # Killed outright: what is mounted is read on, and the node starts again over it.
        os.kill(node.pid, signal.SIGKILL)
        until(lambda: not local_nodes.is_alive(node))
        assert seen() == names
        node, is_new = local_nodes.start(place, "n", wish, machine.environment, SystemClock(), SystemEntropy())
        assert is_new
        assert local_nodes.stop(node, 60)
        assert seen() == names
    finally:
        for node in local_nodes.nodes(place):
            local_nodes.stop(node, 60)
            local_nodes.remove(node)
    assert not (place / "n").exists()
    until(lambda: not [line for line in command_lines() if str(place).encode() in line])
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(place) in line]
