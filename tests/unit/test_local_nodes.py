"""What is a local node, and what goes with it: no copy, no link, nothing that others mounted there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from synclib.core.rollout import NodeSpec
from synclib.errors import Unavailable
from tools.fleet.local_nodes import nodes, remove
from tools.fleet.node_file import LocalNode, write_node
from tools.fleet.upgrade_plan import _free


def node(place: Path, name: str) -> LocalNode:
    (place / name / "data").mkdir(parents=True)
    found = LocalNode(node=name, role="echo", at="", directory=place / name)
    write_node(found)
    return found


def names(place: Path) -> list[str]:
    return [each.node for each in nodes(place)]


def test_a_copy_and_a_link_are_no_nodes(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "nodes", tmp_path / "elsewhere"
    node(place, "echo-1")
    node(elsewhere, "echo-2")
    shutil.copytree(place / "echo-1", place / "echo-1.bak")
    (place / "echo-2").symlink_to(elsewhere / "echo-2")
    assert names(place) == ["echo-1"]


def test_what_cannot_be_taken_away_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = node(tmp_path, "echo-1")

    def refuse(path: Path) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(Unavailable, match="busy"):
        remove(found)
    monkeypatch.undo()
    assert remove(found) == []
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_a_stranger_has_mounted_there_stays(tmp_path: Path) -> None:
    place, precious = tmp_path / "nodes", tmp_path / "precious"
    found = node(place, "echo-1")
    precious.mkdir()
    (precious / "keep").write_text("x")
    (place / "echo-1/cache").mkdir()
    subprocess.run(["mount", "--bind", precious, place / "echo-1/cache"], check=True)
    try:
        assert remove(found) == [f"mount {place / 'echo-1/cache'}"]
    finally:
        subprocess.run(["umount", place / "echo-1/cache"], check=True)
    assert (precious / "keep").read_text() == "x"
    assert remove(found) == []


def test_an_id_after_which_nodes_are_named_is_not_given_again() -> None:
    """Its journal was taken away."""
    olds = [NodeSpec(node=name, role="echo") for name in ("echo-000001-1", "echo-000002-2", "echo-7")]
    assert _free("echo-000001", olds) == "echo-000003"
    assert _free("echo-000003", olds) == "echo-000003"


@pytest.mark.parametrize("name", ["../src", "a/b", "", "a..b", "-x", "a b", "a\n"])
def test_a_journal_names_nodes_that_can_be_one(name: str) -> None:
    with pytest.raises(ValueError, match="node"):
        NodeSpec(node=name, role="echo")
