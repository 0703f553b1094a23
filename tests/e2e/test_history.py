"""A dataset's life from the command line: it grows, is compacted, tagged, collected, repacked, reverted, replicated."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.errors import Conflict, Corrupt, Invalid, Missing, Partial
from tests.e2e.boxlink_process import Machine
from tests.kit import read_tree

COMMON = {"seq", "digest", "files", "bytes", "bytes_up", "bytes_down", "requests", "usd", "seconds"}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, dict[int, str]]:
    """Twenty publishes: the digest of each seq as its publisher printed it."""
    machine = Machine(tmp_path_factory.mktemp("grown"))
    machine.run("init")
    source = machine.place / "source"
    source.mkdir()
    digests = {}
    for number in range(20):
        (source / f"f{number % 7}").write_bytes(b"%d" % number * 2000)
        (source / f"g{number}").write_bytes(b"g%d" % number)
        done = machine.json("publish", "covers", "source")
        assert done.keys() >= COMMON
        digests[done["seq"]] = done["digest"]
    return machine, digests


def test_the_chain_stays_short_by_itself_and_log_shows_it(grown: tuple[Machine, dict[int, str]]) -> None:
    machine, digests = grown
    shown = machine.json("log", "covers")
    assert (shown["seq"], shown["digest"]) == (20, digests[20])
    chain = shown["chain"]
    assert len(chain) < 12
    assert [run["seq_first"] for run in chain] == [1, *(run["seq_last"] + 1 for run in chain[:-1])]
    assert chain[-1]["seq_last"] == 20
    assert {"level", "entries", "tombstones", "bytes", "created_at"} <= chain[0].keys()
    assert chain[0]["level"] == "snap"
    text = machine.run("log", "covers").decode()
    assert all(run["level"] in text and f"{run['seq_first']}..{run['seq_last']}" in text for run in chain)


def test_compact_by_hand_changes_nothing_that_anybody_sees(grown: tuple[Machine, dict[int, str]]) -> None:
    machine, digests = grown
    before = machine.json("log", "covers")["chain"]
    dry = machine.json("compact", "covers", "--full", "--dry-run")
    assert machine.json("log", "covers")["chain"] == before
    assert (dry["dry_run"], len(dry["merges"])) == (True, 1)
    done = machine.json("compact", "covers", "--full")
    assert done.keys() >= COMMON
    assert (done["digest"], done["runs"]) == (digests[20], 1)
    assert machine.json("compact", "covers", "--full")["merges"] == []
    for seq in (1, 8, 15, 20):
        target = machine.place / f"at{seq}"
        assert machine.json("restore", "covers", target, "--seq", seq)["digest"] == digests[seq]
        assert read_tree(target)[b"g%d" % (seq - 1)] == b"g%d" % (seq - 1)
    assert machine.json("verify", "covers", "--data")["damage"] == []


def test_tag_gc_repack_revert(grown: tuple[Machine, dict[int, str]], tmp_path: Path) -> None:
    machine, digests = grown
    assert machine.json("tag", "covers", "golden", 5)["digest"] == digests[5]
    assert [tag["name"] for tag in machine.json("tag", "covers")["tags"]] == ["golden"]
    assert machine.json("gc", "covers")["seqs_kept"] == list(range(1, 21))
    dry = machine.json("gc", "covers", "--keep-last", 2, "--dry-run")
    assert dry["seqs_kept"] == [5, 19, 20]
    assert machine.json("log", "covers")["seqs"] == list(range(1, 21))
    done = machine.json("gc", "covers", "--keep-last", 2)
    assert done.keys() >= COMMON
    assert done["deleted"] == dry["deleted"]
    assert machine.json("log", "covers")["seqs"] == [5, 19, 20]
    assert machine.json("restore", "covers", tmp_path / "gone", "--seq", 7, code=Missing.exit_code)["error"]["hint"]
    assert machine.json("restore", "covers", tmp_path / "at5", "--seq", 5)["digest"] == digests[5]
    assert machine.json("repack", "covers", "--dry-run")["packs"]
    assert machine.json("repack", "covers")["digest"] == digests[20]
    assert machine.json("verify", "covers", "--data")["damage"] == []
    reverted = machine.json("revert", "covers", 5)
    assert (reverted["seq"], reverted["digest"]) == (21, digests[5])
    assert machine.json("revert", "covers", 5)["is_new"] is False
    machine.run("tag", "covers", "golden", "--delete")
    machine.run("tag", "covers", "golden", "--delete", code=Missing.exit_code)
    assert machine.json("gc")["datasets"][0]["seqs_kept"] == [5, 19, 20, 21]
    machine.place.joinpath("boxlink.toml").write_text("[gc]\nkeep_last = 1\n")
    assert machine.json("gc")["datasets"][0]["seqs_kept"] == [21]
    machine.place.joinpath("boxlink.toml").unlink()
    assert machine.json("verify", "--data")["datasets"][0]["damage"] == []


def test_replicate_and_follow_the_copy(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / "source/a").write_bytes(b"%d" % number)
        machine.run("publish", "covers", "source")
    copy = f"file://{tmp_path}/copy"
    machine.run("replicate", copy, code=Missing.exit_code)
    machine.run("init", "--store", copy)
    assert machine.json("replicate", copy, "--dry-run")["datasets"][0]["copied"]["packs"] == 3
    done = machine.json("replicate", copy, "covers")
    assert done.keys() >= COMMON
    assert done["copied"] == {"manifests": 3, "runs": 3, "packs": 3, "attachments": 0}
    assert machine.json("restore", "covers", tmp_path / "here", "--store", copy, "--seq", 2)["seq"] == 2
    assert (tmp_path / "here/a").read_bytes() == b"1"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b").write_bytes(b"x")
    machine.run("publish", "covers", "other", "--store", copy, "--allow-delete")
    machine.run("replicate", copy, "covers", code=Conflict.exit_code)
    machine.run("replicate", machine.store, "covers", code=Invalid.exit_code)


def test_a_replication_names_what_is_lost_and_carries_the_rest(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source").mkdir()
    for number in range(2):
        (tmp_path / "source/a").write_bytes(b"%d" % number)
        machine.run("publish", "covers", "source")
    machine.run("compact", "covers", "--full")
    machine.run("gc", "covers")
    machine.run("gc", "covers")
    (pack, _) = sorted((tmp_path / "store/data/covers/pack").iterdir())
    pack.unlink()
    copy = f"file://{tmp_path}/copy"
    machine.run("init", "--store", copy)
    done = machine.json("replicate", copy, "covers", code=Partial.exit_code)
    assert [left["seq"] for left in done["left_out"]] == [1]
    assert pack.name in done["left_out"][0]["why"]
    assert machine.json("restore", "covers", tmp_path / "here", "--store", copy)["seq"] == 2
    assert (tmp_path / "here/a").read_bytes() == b"1"


def test_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.json("doctor", code=Missing.exit_code)["ok"] is False
    machine.run("init")
    found = machine.json("doctor")
    assert found["ok"] is True
    assert {row["what"] for row in found["findings"]} >= {"store", "initialised", "conditional writes", "cache"}
    assert not list((tmp_path / "store").glob("probe/*"))


def test_verify_names_damage_in_parallel(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run("init")
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / f"source/{number}").write_bytes(b"%d" % number * 5000)
        machine.run("publish", "covers", "source")
    pack = min((tmp_path / "store/data/covers/pack").iterdir())
    data = bytearray(pack.read_bytes())
    data[40] ^= 1
    pack.write_bytes(data)
    assert machine.json("verify", "covers")["damage"] == []
    found = machine.json("verify", "covers", "--data", code=Corrupt.exit_code)
    assert [row["key"] for row in found["damage"]] == [f"data/covers/pack/{pack.name}"]
