"""What other tools were seen to get wrong (docs/rivals.md), where no other test has just that."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.engine.compact import compact
from synclib.engine.head_swap import archive
from synclib.engine.host import no_progress
from synclib.errors import BoxlinkError, Corrupt
from synclib.store.memory import MemoryStore
from tests.e2e.boxlink_process import BOXLINK, Machine
from tests.kit import Content, Kit, metadata, read_tree

OLD: Content = {b"a": b"old " * 300, b"d": None, b"d/link": ("link", b"../a"), b"d/noise": b""}
NEW: Content = {**OLD, b"a": b"new " * 300, b"d/noise": random.Random(5).randbytes(3000), b"d/more": ("link", b"noise")}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    """Two seqs, all manifests of which are objects; and what the head was at the first."""
    kit = Kit(tmp_path / "kit")
    kit.write(OLD)
    kit.publish()
    kit.write(NEW)
    kit.publish()
    archive(kit.dataset, kit.host, kit.dataset.read_head())
    return kit


def damages(kit: Kit, random: random.Random) -> Iterator[tuple[str, str, bytes | None]]:
    """(key, what is done, bytes that are then there or None) for every object of the dataset."""
    objects = {info.key: kit.store.get_suffix(info.key, 1 << 20).data for info in kit.store.list("data/")}
    for key, data in objects.items():
        for _ in range(12):
            at = random.randrange(len(data))
            yield key, "flip", data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        for length in {0, 1, len(data) // 2, len(data) - 1}:
            yield key, "truncation", data[:length]
        yield key, "more", data + b"\0"
        yield key, "deletion", None
        for other, others in objects.items():
            if other != key:
                yield key, "swap", others


def test_damage_to_any_object_is_never_a_wrong_restore(kit: Kit, tmp_path: Path) -> None:
    """A new machine restores each seq: it has the right bytes, or it is refused. Nothing else stands there either."""
    wanted = {1: (OLD, kit.dataset.manifest_at(1).digest), 2: (NEW, kit.dataset.manifest_at(2).digest)}
    ends: Counter[str] = Counter()
    for number, (key, what, data) in enumerate(damages(kit, random.Random(1))):
        store = MemoryStore()
        for info in kit.store.list(""):
            if info.key != key or data is not None:
                store.put(info.key, data if info.key == key and data is not None else _bytes(kit, info.key))
        seq = 1 + number % 2
        tree, digest = wanted[seq]
        out = tmp_path / f"out{number}"
        victim = Kit(tmp_path / f"victim{number}", store)
        try:
            assert victim.restore(out, seq).digest == digest
        except BoxlinkError:
            ends["refused"] += 1
            there = read_tree(out) if out.exists() else {}
            assert all(tree[path] == value for path, value in there.items()), (key, what)
        else:
            ends["right"] += 1
            assert read_tree(out) == tree, (key, what)
        if "/pack/" in key or "/run/" in key:
            # The newest seq needs all of these: who looks for damage finds it, but in fields that mean nothing.
            place = tmp_path / f"verifier{number}"
            assert _finds_damage(store, place) or _is_whole(store, place, wanted), (key, what)
    assert ends["refused"] > 60
    assert ends["right"] > 60


def _bytes(kit: Kit, key: str) -> bytes:
    return kit.store.get_suffix(key, 1 << 20).data


def _finds_damage(store: MemoryStore, place: Path) -> bool:
    try:
        return bool(Kit(place, store).verify().damage)
    except BoxlinkError:
        return True


def _is_whole(store: MemoryStore, place: Path, wanted: dict[int, tuple[Content, str]]) -> bool:
    for seq, (tree, _) in wanted.items():
        Kit(place / f"reader{seq}", store).restore(place / f"out{seq}", seq)
        assert read_tree(place / f"out{seq}") == tree
    return True


def test_an_older_head_takes_nobody_back(kit: Kit, tmp_path: Path) -> None:
    """A store that was put back as it was: a new machine gets that seq, whole; a directory that is further stays."""
    older = MemoryStore()
    first = Kit(tmp_path / "first", older)
    older.put("boxlink.json", b"{}")
    first.write(OLD)
    first.publish()
    then = _bytes(first, "data/covers/head")
    first.write(NEW)
    first.publish()
    out = tmp_path / "out"
    first.restore(out)
    older.put("data/covers/head", then)
    assert first.restore(tmp_path / "fresh").seq == 1
    assert read_tree(tmp_path / "fresh") == OLD
    with pytest.raises(BoxlinkError):
        first.publish(out)
    assert read_tree(out) == NEW


@pytest.mark.parametrize("kind", ["head", "manifest", "run", "pack"])
def test_an_object_of_1_gb_takes_no_memory(tmp_path: Path, kind: str) -> None:
    """All processes of the restore are held to 700 MB of addresses: it ends with the right error, not for want of
    them."""
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    source.mkdir()
    for content in (os.urandom(100_000), os.urandom(100_000)):
        (source / "a").write_bytes(content)
        machine.run("publish", "covers", source, "-q")
    machine.run("gc", "covers", "-q")
    top = tmp_path / "store/data/covers"
    victims = [top / "head"] if kind == "head" else [path for path in (top / kind).rglob("*") if path.is_file()]
    assert victims
    for path in victims:
        os.truncate(path, 0)
        os.truncate(path, 1 << 30)
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v 700000; exec "$@"', "-", BOXLINK, "restore", "covers", str(tmp_path / "out")]
        + (["--seq", "1"] if kind == "manifest" else []),
        env={**machine.environment, "XDG_CACHE_HOME": str(tmp_path / "another cache")},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    text = done.stderr.decode()
    assert (done.returncode, "Traceback" in text) == (Corrupt.exit_code, False), text
    assert not (tmp_path / "out/a").exists()


@pytest.mark.parametrize("limit", [12, 16, 24, 40])
def test_a_publish_with_hardly_any_descriptors_makes_no_part_the_newest(tmp_path: Path, limit: int) -> None:
    """It is whole, or it is no seq at all; and with more descriptors it is whole."""
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    for number in range(30):
        (source / f"{number}/a/b/c/d/e").mkdir(parents=True)
        (source / f"{number}/a/b/c/d/e/f").write_bytes(os.urandom(2000))
    done = subprocess.run(
        ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", BOXLINK, "publish", "covers", str(source), "--json"],
        env=machine.environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    text = done.stderr.decode()
    assert "Traceback" not in text, text
    if (tmp_path / "store/data/covers/head").exists():
        assert done.returncode == 0, text
        assert json.loads(done.stdout)["skipped"] == []
    else:
        assert done.returncode not in (0, 3), text
    machine.run("publish", "covers", source, "-q")
    machine.run("restore", "covers", tmp_path / "out", "-q")
    assert read_tree(tmp_path / "out") == read_tree(source)


def test_new_times_alone_store_no_content(kit: Kit, tmp_path: Path) -> None:
    """As a release does that was unpacked anew: every mtime is another, no byte is."""
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    packs = {info.key for info in kit.store.list("data/covers/pack/")}
    for path, value in NEW.items():
        if isinstance(value, bytes):
            os.utime(os.path.join(os.fsencode(kit.directory), path), (1_600_000_000, 1_600_000_000))
    done = kit.publish()
    assert done.is_new
    assert {info.key for info in kit.store.list("data/covers/pack/")} == packs
    kit.restore(tmp_path / "out")
    assert metadata(tmp_path / "out")[b"a"][1] == 1_600_000_000_000_000_000


def test_reading_one_file_lists_nothing(tmp_path: Path) -> None:
    """Nor does a publish, nor a restore of all: what a listing of many objects costs, nobody pays on the way."""
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(100):
        (source / f"{number}").write_bytes(os.urandom(20_000))
    for words in (
        ["publish", "covers", source],
        ["publish", "covers", source],
        ["restore", "covers", tmp_path / "all"],
        ["restore", "covers", tmp_path / "one", "--path", "7"],
        ["ls", "covers"],
    ):
        done = machine.json(*words)
        if words[0] == "publish" and done["seq"] == 1 and done.get("added"):
            # Before it begins a history it looks whether there is one whose head is lost.
            assert done["requests"].get("list", 0) <= 2
            continue
        assert done["requests"].get("list", 0) == 0, (words, done["requests"])
