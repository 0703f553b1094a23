"""`boxlink release publish` of a directory whose roles are none: nothing is published, every new node would take it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine

GOOD = 'role = "a"\n[[process]]\nname = "p"\nrun = ["true"]\n'


@pytest.mark.parametrize("bad", ['role = "a', 'role = "a"\nnosuch = 1\n', "x" * (1 << 20)])
def test_a_role_that_is_none_is_not_published(tmp_path: Path, bad: str) -> None:
    machine = Machine(tmp_path)
    machine.run("init")
    roles = tmp_path / "build/roles"
    roles.mkdir(parents=True)
    (roles / "good.toml").write_text(GOOD)
    os.mkfifo(roles / "pipe.toml")
    (roles / "bad.toml").write_text(bad)
    error = machine.json("release", "publish", "fleet", "build", code=2)["error"]
    assert error["path"].endswith("build/roles/bad.toml") or "bad.toml" in error["message"]
    assert not list((tmp_path / "store").rglob("head"))
    (roles / "bad.toml").write_text(GOOD)
    (roles / "pipe.toml").unlink()
    assert machine.json("release", "publish", "fleet", "build")["seq"] == 1
