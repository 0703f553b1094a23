"""Readers of the newest seq beside compactions and collections that keep nothing else: they never fail."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from synclib.clock import SeededEntropy
from synclib.core import leveling
from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import Host, no_progress
from synclib.engine.repack import RepackOptions, repack_dataset
from synclib.engine.restore import restore_seq
from synclib.engine.task import RestoreOptions
from synclib.errors import Missing
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.lazy.open import open_view
from synclib.lazy.steady_changes import steady_changes
from synclib.lazy.stream_file import stream_file
from synclib.store.base import Buffer
from synclib.store.file import FileStore
from synclib.store.memory import MemoryStore
from synclib.store.open import open_store
from tests.kit import Content, Kit, PatientClock, put
from tools.cli import boxlink

LAST_ONLY = Retention(last=1)
FILES: Content = {b"d%d/%03d" % (number % 5, number): b"%d" % number * 50 for number in range(60)}
COUNT = 7  # seqs


def tidied(dataset: Dataset, host: Host) -> None:
    """The head's seq has one run from now on, the former ones are gone, unless somebody has a pin."""
    compact(dataset, host, no_progress, is_full=True)
    before = {item.key for item in dataset.store.list(f"{dataset.root}/run/")}
    collect(dataset, host, LAST_ONLY, None, no_progress)
    assert len(before) > 1
    is_pinned = any(dataset.store.list(f"{dataset.root}/pin/"))
    assert is_pinned or len(list(dataset.store.list(f"{dataset.root}/run/"))) == 1


class Tidied(MemoryStore):
    """Before its n-th read of ranges another node compacts and collects."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1
        self.others: list[tuple[Dataset, Host]] = []
        self.put(STORE_KEY, b"{}")

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.left -= 1
        if self.left == -1:
            tidied(*self.others[0])
        return super().get_ranges(key, ranges)


def grown(kit: Kit) -> None:
    kit.write(FILES)
    kit.publish()
    for number in range(COUNT - 1):
        put(kit.directory, b"d0/new%d" % number, b"%d" % number)
        put(kit.directory, b"d4/000", b"%d" % number)
        kit.publish()


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    store = Tidied()
    kit = Kit(tmp_path, store)
    grown(kit)
    other = Host("n2", PatientClock(), SeededEntropy(2), tmp_path / "s2", tmp_path / "c2")
    store.others.append((Dataset(store, kit.dataset.root), other))
    return kit


def expected(kit: Kit) -> list[bytes]:
    found = [entry.path for entry in open_view(kit.dataset).walk()]
    assert len(found) == 60 + 6 + 5 + 1
    return found


@pytest.mark.parametrize("place", [0, 1, 3, 7, 8, 12])
def test_a_walk_goes_on(kit: Kit, place: int) -> None:
    paths = expected(kit)
    assert isinstance(kit.store, Tidied)
    view = open_view(kit.dataset)
    kit.store.left = place
    assert [entry.path for entry in view.walk()] == paths
    assert kit.store.left < 0
    assert [entry.path for entry in view.listdir(b"d0")] == [path for path in paths if path.startswith(b"d0/")]


def test_a_walk_that_was_begun_goes_on_after_what_it_said(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synclib.core.runfile.BLOCK_PLAIN_TARGET", 200)
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    put(kit.directory, b"d1/more", b"1")
    kit.publish()
    paths = [entry.path for entry in open_view(kit.dataset).walk()]
    monkeypatch.setattr("synclib.lazy.run_reader._READ_BYTES", 100)
    walk = open_view(kit.dataset).walk()
    found = [entry.path for entry in itertools.islice(walk, 20)]
    assert isinstance(kit.store, Tidied)
    tidied(*kit.store.others[0])
    assert found + [entry.path for entry in walk] == paths


@pytest.mark.parametrize("place", range(6))
def test_a_file_is_read(kit: Kit, place: int) -> None:
    assert isinstance(kit.store, Tidied)
    kit.store.left = place
    view = open_view(kit.dataset)
    assert b"".join(stream_file(view.open(b"d4/000"))) == b"5"
    assert b"".join(stream_file(view.open(b"d1/001"))) == FILES[b"d1/001"]
    assert kit.store.left < 0


def test_a_file_that_is_open_is_read_after_a_repacking(kit: Kit) -> None:
    view = open_view(kit.dataset)
    file = view.open(b"d4/000")
    repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    for _ in range(2):
        collect(kit.dataset, kit.host, LAST_ONLY, None, no_progress)
    assert file.pread(0, 10) == b"5"
    with pytest.raises(Missing, match="there is no"):
        view.stat(b"d4/none")


def test_a_file_of_several_packs_is_read_after_a_repacking_of_one(tmp_path: Path) -> None:
    kit = Kit(tmp_path, MemoryStore())
    kit.store.put(STORE_KEY, b"{}")
    chance = random.Random(4)
    content = bytearray(chance.randbytes(6_000_000))
    kit.write({b"large": bytes(content)})
    kit.publish()
    content[-100:] = chance.randbytes(100)
    kit.write({b"large": bytes(content), **{b"junk%d" % number: chance.randbytes(900_000) for number in range(9)}})
    kit.publish()
    kit.write({b"large": bytes(content)})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    view = open_view(kit.dataset)
    file = view.open(b"large")
    before = set(view.stat(b"large").chunks)
    assert len({chunk.pack for chunk in before}) == 2
    repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    for _ in range(2):
        collect(kit.dataset, kit.host, LAST_ONLY, None, no_progress)
    after = set(open_view(kit.dataset).stat(b"large").chunks)
    assert before & after, "of some chunks the place is the same"
    assert before - after, "others have moved"
    assert file.pread(0, len(content)) == bytes(content)


@pytest.mark.parametrize("place", [0, 2, 6, 9, 14])
def test_a_difference_goes_on(kit: Kit, place: int) -> None:
    first = kit.dataset.manifest_at(COUNT)
    put(kit.directory, b"d0/new0", b"changed")
    (kit.directory / "d1/001").unlink()
    kit.publish()
    second = kit.dataset.manifest_at(None)
    told = [(old and old.path, new and new.path) for old, new in steady_changes(kit.dataset, second, second)]
    assert told == []
    empty = kit.dataset.manifest_at(1)
    said = list(steady_changes(kit.dataset, first, second))
    assert len(said) == 2
    assert isinstance(kit.store, Tidied)
    kit.store.left = place
    # Of a seq with itself, the only one that stays: nothing differs.
    assert list(steady_changes(kit.dataset, second, second)) == []
    with pytest.raises(Missing, match="no longer has seq 1"):
        list(steady_changes(kit.dataset, empty, second))


@pytest.mark.parametrize("place", range(0, 9, 2))
def test_a_seq_is_restored_by_who_may_not_write(kit: Kit, tmp_path: Path, place: int) -> None:
    """Without a pin: its manifest is read again."""
    manifest = kit.dataset.manifest_at(COUNT)
    assert isinstance(kit.store, Tidied)
    kit.store.left = place
    done = restore_seq(kit.dataset, manifest, None, tmp_path / "out", kit.host, RestoreOptions(), no_progress)
    assert (done.digest, done.problems) == (manifest.digest, [])
    assert (tmp_path / "out/d4/000").read_bytes() == b"5"


def test_chains_that_always_go_end_in_an_error(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever collects faster than this reads: bounded."""
    view = open_view(kit.dataset)
    manifest = kit.dataset.manifest_at(None)
    asked = 0

    def gone(key: str, _: object) -> list[Buffer]:
        raise Missing("there is no such object", key=key)

    def another(seq: int | None) -> object:
        nonlocal asked
        asked += 1
        import msgspec

        runs = [msgspec.structs.replace(run, ulid=asked.to_bytes(16, "big")) for run in manifest.runs]
        return msgspec.structs.replace(manifest, runs=runs)

    monkeypatch.setattr(kit.store, "get_ranges", gone)
    monkeypatch.setattr(kit.dataset, "manifest_at", another)
    with pytest.raises(Missing, match="no such object"):
        list(view.walk())
    with pytest.raises(Missing, match="no such object"):
        view.stat(b"d4/000")
    assert asked < 40


VERBS = [
    ["cat", "covers", "d4/000"],
    ["ls", "covers", "d0", "--json"],
    ["ls", "covers", "-r", "--json"],
    ["log", "covers", "--json"],
    ["diff", "covers", str(COUNT), str(COUNT), "--json"],
    ["restore", "covers", "OUT", "--json"],
    ["restore", "covers", "OUT", "--seq", str(COUNT), "--json"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_each_verb_beside_a_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """At each of its reads in turn."""
    monkeypatch.setattr(leveling, "RATIO_RUNS_MIN", 100)
    for place in range(4):
        top = tmp_path / str(place)
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(top / name))
        url = f"file://{top}/store"
        (top / "store").mkdir(parents=True)
        store = open_store(url, {})[0]
        store.put(STORE_KEY, b"{}")
        kit = Kit(top / "kit", store)
        grown(kit)
        left = place
        real = {name: getattr(FileStore, name) for name in ("get", "get_ranges")}

        def counted(name: str, kit: Kit = kit, real: dict[str, object] = real) -> object:
            def read(self: FileStore, key: str, *args: object, **options: object) -> object:
                nonlocal left
                answer = None if name == "get_ranges" else real[name](self, key, *args, **options)  # type: ignore[operator]
                left -= 1
                if left == -1:
                    tidied(kit.dataset, kit.host)
                return answer if name == "get" else real[name](self, key, *args, **options)  # type: ignore[operator]

            return read

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(FileStore, name, counted(name))
            chosen = [str(top / "out") if word == "OUT" else word for word in words]
            done = CliRunner().invoke(boxlink, [*chosen, "--store", url])
        assert done.exit_code == 0, (place, done.output)
        assert left < 0 or place > 1
        if words[0] == "cat":
            assert done.stdout == "5"
        else:
            assert json.loads(done.stdout)["digest"] == kit.dataset.manifest_at(None).digest
