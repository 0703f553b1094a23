"""The verbs over a store that takes conditions and ignores them: it is never made ready, so nothing is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from synclib.errors import Missing, Unsupported
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Body
from synclib.store.file import FileStore
from tools.cli import boxlink


class Node:
    def __init__(self, place: Path) -> None:
        self.store = place / "store"
        self.source = place / "source"
        self.source.mkdir()
        (self.source / "a").write_text("1")

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(boxlink, [*words, "--store", f"file://{self.store}", "--json"])


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return Node(tmp_path)


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FileStore.put

    def put(self: FileStore, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return real(self, key, body)

    monkeypatch.setattr(FileStore, "put", put)


def test_it_is_not_made_ready_and_nothing_is_published(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    ignore_conditions(monkeypatch)
    assert isinstance(node.run("init").exception, Unsupported)
    assert not (node.store / STORE_KEY).exists()
    refused = node.run("publish", "covers", str(node.source))
    assert isinstance(refused.exception, Missing)
    assert "boxlink init" in refused.exception.hint
    assert [path for path in node.store.rglob("*") if path.is_file() and "data" in path.parts] == []


def test_one_that_was_brought_to_such_a_server_is_found(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """``boxlink.json`` came with the objects."""
    assert node.run("init").exit_code == 0
    assert node.run("doctor").exit_code == 0
    assert not json.loads(node.run("init").stdout)["is_new"]
    ignore_conditions(monkeypatch)
    assert isinstance(node.run("init").exception, Unsupported)
    doctor = node.run("doctor")
    assert doctor.exit_code == Unsupported.exit_code
    rows = {row["what"]: row for row in json.loads(doctor.stdout)["findings"]}
    assert not rows["conditional writes"]["ok"]
