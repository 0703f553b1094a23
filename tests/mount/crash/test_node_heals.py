"""Keeper and worker of a followed dataset are killed at a step of a fault: the node mounts it again by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.mount.crash.hooks import Hooks
from tests.mount.mounted import LARGE_BYTES
from tests.mount.test_lazy_sync import Site
from tests.mount.test_tree_mount import is_read


@pytest.mark.parametrize("step", ["taken", "fetched", "recorded"])
def test_by_itself(tmp_path: Path, step: str) -> None:
    site = Site(tmp_path)
    hooks = Hooks(tmp_path / "hooks", site.machine.environment)
    try:
        (site.covers / "synch.active").write_text("lazy")
        site.start()
        site.wait(lambda: site.down()["seq"] == 1)
        (first,) = site.keepers()
        hooks.kill(step, "keeper", "worker")
        read = subprocess.run(["cat", site.covers / "large"], capture_output=True, check=False, timeout=60)
        assert hooks.has_killed(step)
        right = (site.source / "large").read_bytes()
        assert right.startswith(read.stdout)
        assert (read.returncode == 0) == (len(read.stdout) == LARGE_BYTES)
        assert site.machine.json("status")["mounts"]
        site.wait(lambda: is_read(site.covers / "large") and site.down()["seq"] == 1)
        site.assert_same()
        (row,) = (row for row in site.machine.json("status")["mounts"] if row["state"] == "serving")
        assert row["keeper"] != first
    finally:
        site.close()
