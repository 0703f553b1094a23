"""What verbs tell a person of what they did, did not do, or could not find."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.disk.mounts import mounted_on
from tests.e2e.boxlink_process import Machine, end_session


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Two seqs of covers, of which the newer has one file more."""
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source/2026/11").mkdir(parents=True)
    (tmp_path / "source/2026/11/a.jpg").write_bytes(b"a")
    machine.run("publish", "covers", "source")
    (tmp_path / "source/2026/11/b.jpg").write_bytes(b"b")
    machine.run("publish", "covers", "source")
    return machine


def said(machine: Machine, *words: object, code: int = 0) -> tuple[str, str]:
    """Stdout and stderr."""
    process = machine.start(*words)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        end_session(process)
    assert process.returncode == code, (out, err)
    return out.decode(), err.decode()


def test_verify_says_which_seqs_and_how_much(machine: Machine) -> None:
    out, _ = said(machine, "verify", "covers", "--all")
    assert out.startswith("covers seqs 1-2: whole (2 runs, 2 packs, 0 attachments; ")
    assert " read)\n" in out
    out, _ = said(machine, "verify", "covers")
    assert out.startswith("covers seq 2: whole (")


def test_gc_says_why_nothing_goes(machine: Machine) -> None:
    _, err = said(machine, "gc", "covers")
    assert "boxlink: covers: 2 seqs are kept because neither --keep options nor [gc] let any go\n" in err
    assert "boxlink: covers: nothing to delete: each of " in err


def test_a_mount_hides_no_files(machine: Machine) -> None:
    (machine.place / "full").mkdir()
    (machine.place / "full/own.txt").write_text("mine")
    error = machine.json("mount", "covers", "full", code=2)["error"]
    assert (error["kind"], error["path"]) == ("invalid", str(machine.place / "full"))
    assert "'own.txt'" in error["message"]
    assert "choose an empty one" in error["hint"]
    assert [path.name for path in (machine.place / "full").iterdir()] == ["own.txt"]
    assert not mounted_on(os.fsencode(machine.place / "full"))


def test_a_misspelt_path_or_dataset_is_told_what_is_there(machine: Machine) -> None:
    def hint(*words: str) -> str:
        return str(machine.json(*words, code=10)["error"]["hint"])

    assert hint("ls", "covres") == "did you mean covers? boxlink ls lists the datasets"
    assert hint("ls", "films") == "there are covers: boxlink ls"
    assert hint("ls", "covers", "2025/11") == "did you mean 2026? boxlink ls covers lists what is there"
    assert hint("ls", "covers", "2026/11/A.jpg").startswith("did you mean 2026/11/a.jpg or 2026/11/b.jpg? ")
    assert hint("ls", "covers", "2026/11/something") == "2026/11 has a.jpg, b.jpg: boxlink ls covers 2026/11"
    assert hint("ls", "covers", "2026/11/a.jpg/x") == "2026/11/a.jpg is no directory"
    _, err = said(machine, "cat", "covers", "2026/11/c.jpg", code=10)
    assert "hint: did you mean 2026/11/" in err
