"""Compaction: the same content over fewer runs, at every age of a chain; whole blocks copied where nothing overlaps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import synclib.engine.maintain as maintain_module
from synclib.core import leveling
from synclib.core.block import BLOCK_PLAIN_TARGET
from synclib.core.entry import Entry, Kind
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder, RunParts
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.merge import merge
from synclib.lazy.run_reader import RunReader, StoreRuns, block_id
from synclib.store.memory import MemoryStore
from tests.kit import Kit, put, read_tree

ROOT = "data/covers"


class Runs:
    """Runs in a memory store, made of plain entries."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._count = 0

    def keep(self, parts: RunParts) -> RunReader:
        self._count += 1
        ref = parts.ref(self._count.to_bytes(16, "big"), 1)
        self.store.put(ref.key(ROOT), b"".join(parts.read()))
        parts.close()
        return RunReader(StoreRuns(self.store), ROOT, ref)

    def make(self, seq: int, entries: list[Entry]) -> RunReader:
        builder = RunBuilder("snap" if seq == 1 else "diff1", seq, seq, PackTable())
        for entry in sorted(entries, key=lambda entry: entry.key):
            builder.add(entry)
        return self.keep(builder.finish())

    def merge(self, runs: list[RunReader]) -> RunReader:
        first, last = runs[0].ref.seq_first, runs[-1].ref.seq_last
        builder = RunBuilder("snap" if first == 1 else "diff2", first, last, PackTable())
        merge(runs, builder, {}, is_snap=first == 1)
        return self.keep(builder.finish())


def link(path: bytes, target: bytes) -> Entry:
    directory, _, name = path.rpartition(b"/")
    return Entry(directory, name, Kind.SYMLINK, 0o777, 5, target=target)


def gone(path: bytes) -> Entry:
    directory, _, name = path.rpartition(b"/")
    return Entry(directory, name, Kind.TOMBSTONE)


paths = st.sampled_from([b"%c/%d" % (97 + number % 3, number) for number in range(12)])
tables = st.lists(st.dictionaries(paths, st.sampled_from([b"x", b"y", b""]), min_size=1), min_size=2, max_size=6)


def entries_of(table: dict[bytes, bytes]) -> list[Entry]:
    return [link(path, target) if target else gone(path) for path, target in table.items()]


@given(tables, st.data(), st.booleans())
@settings(deadline=None)
def test_a_merge_says_what_its_runs_say(tables: list[dict[bytes, bytes]], data: st.DataObject, tiny: bool) -> None:
    import synclib.core.runfile as runfile
    import synclib.lazy.merge as merge_module

    with pytest.MonkeyPatch.context() as patch:
        if tiny:
            # Blocks of an entry or two, all of them worth copying.
            patch.setattr(runfile, "BLOCK_PLAIN_TARGET", 40)
            patch.setattr(merge_module, "BLOCK_PLAIN_TARGET", 1)
            patch.setattr(merge_module, "BLOOM_ENTRIES_MAX", 0)
        runs = Runs()
        chain = [runs.make(seq, entries_of(table)) for seq, table in enumerate(tables, 1)]
        expected = list(Chain(chain).entries())
        first = data.draw(st.integers(0, len(chain) - 2))
        stop = data.draw(st.integers(first + 2, len(chain)))
        merged = runs.merge(chain[first:stop])
        assert list(Chain([*chain[:first], merged, *chain[stop:]]).entries()) == expected
        if first == 0:
            assert not merged.tail.tombstone_count
        for path in {path for table in tables for path in table}:
            key = gone(path).key
            assert Chain([*chain[:first], merged, *chain[stop:]]).lookup(key) == Chain(chain).lookup(key)


@given(tables, st.data(), st.booleans())
@settings(deadline=None)
def test_what_differs_does_not_depend_on_how_the_chains_are_cut(
    tables: list[dict[bytes, bytes]], data: st.DataObject, tiny: bool
) -> None:
    import synclib.core.runfile as runfile
    import synclib.lazy.merge as merge_module

    with pytest.MonkeyPatch.context() as patch:
        if tiny:
            patch.setattr(runfile, "BLOCK_PLAIN_TARGET", 40)
            patch.setattr(merge_module, "BLOCK_PLAIN_TARGET", 1)
            patch.setattr(merge_module, "BLOOM_ENTRIES_MAX", 0)
        runs = Runs()
        chain = [runs.make(seq, entries_of(table)) for seq, table in enumerate(tables, 1)]
        middle = data.draw(st.integers(1, len(chain) - 1))
        old = chain[:middle]
        stop = data.draw(st.integers(2, len(chain)))
        new = [runs.merge(chain[:stop]), *chain[stop:]]
        before, after = ({entry.key: entry for entry in Chain(part).entries()} for part in (old, new))
        expected = [
            (before.get(key), after.get(key))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        assert list(changes(Chain(old), Chain(new))) == expected


def test_blocks_that_no_newer_run_touches_are_copied_as_they_are() -> None:
    runs = Runs()
    count = 60_000
    snap = runs.make(1, [link(b"d/%07d" % number, b"t%d" % number) for number in range(count)])
    assert len(snap.tail.blocks) > 20
    diff = runs.make(2, [link(b"d/%07d" % 31_000, b"new"), gone(b"d/%07d" % 31_001), link(b"e/1", b"x")])
    reads = []
    merged = runs.merge([snap, diff])
    shared = {block_id(info) for info in snap.tail.blocks} & {block_id(info) for info in merged.tail.blocks}
    assert len(shared) >= len(snap.tail.blocks) - 2
    assert merged.ref.entry_count == count
    assert Chain([merged]).lookup(link(b"d/%07d" % 31_000, b"").key) == link(b"d/%07d" % 31_000, b"new")
    assert Chain([merged]).lookup(gone(b"d/%07d" % 31_001).key) is None
    assert merged.tail.last_key == link(b"e/1", b"x").key
    assert list(Chain([merged]).entries()) == list(Chain([snap, diff]).entries())
    assert max(info.plain_bytes for info in merged.tail.blocks) < 2 * BLOCK_PLAIN_TARGET
    # What differs is found in the one block that was written anew, and in the diff.
    original = RunReader.block
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReader, "block", lambda run, index: reads.append(index) or original(run, index))
        assert len(list(changes(Chain([snap]), Chain([merged])))) == 3
    assert len(set(reads)) < 10


def test_a_chain_that_ends_with_a_copied_block_says_its_last_key() -> None:
    runs = Runs()
    entries = [link(b"d/%07d" % number, b"t%d" % number) for number in range(60_000)]
    snap = runs.make(1, entries)
    # All of the last block goes: what was copied before it is the end.
    last = [gone(entry.path) for entry in entries if entry.key >= snap.tail.blocks[-1].first_key]
    merged = runs.merge([snap, runs.make(2, last)])
    assert merged.tail.last_key == entries[-len(last) - 1].key
    assert list(Chain([merged]).entries()) == entries[: -len(last)]


def test_every_seq_is_restored_exactly_after_compactions(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    random_ = random.Random(7)
    states = []
    content: dict[bytes, bytes] = {}
    for number in range(20):
        for _ in range(3):
            content[b"f%d" % random_.randrange(12)] = b"%d" % random_.randrange(1000)
        if number % 3 == 2:
            content.pop(random_.choice(sorted(content)))
        kit.write(dict(content))
        done = kit.publish()
        states.append((done.seq, done.digest, dict(content)))
        compact(kit.dataset, kit.host, no_progress)
    compacted = compact(kit.dataset, kit.host, no_progress, is_full=True)
    assert [run.level for run in compacted.manifest.runs] == ["snap"]
    assert compacted.manifest.digest == states[-1][1]
    for seq, digest, expected in states:
        manifest = kit.dataset.manifest_at(seq)
        assert manifest.digest == digest
        target = tmp_path / f"at{seq}"
        assert kit.restore(target, seq=seq).digest == digest
        assert read_tree(target) == expected
    assert not kit.verify().damage
    assert compact(kit.dataset, kit.host, no_progress, is_full=True).merges == []


def test_a_budget_that_fits_nothing_only_puts_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain all of whose runs are above the budget stays short, and every seq is restored exactly."""
    fan_out = 3
    monkeypatch.setattr(maintain_module, "COMPACT_BUDGET_BYTES", 1)
    monkeypatch.setattr(leveling, "FAN_OUT", fan_out)
    monkeypatch.setattr(leveling, "RATIO_RUNS_MIN", fan_out)
    kit = Kit(tmp_path)
    random_ = random.Random(11)
    base: dict[bytes, bytes] = {b"d%d/%d" % (number % 7, number): b"%d" % number for number in range(400)}
    content = dict(base)
    states, longest, levels = [], 0, set()
    for number in range(80):
        content[b"f%d" % random_.randrange(40)] = b"%d" % number
        if number % 5 == 4:
            content.pop(random_.choice(sorted(content.keys() - base.keys())))
        kit.write(content) if number == 0 else _write_changes(kit, states[-1][2], content)
        done = kit.publish()
        assert done.head is not None
        states.append((done.seq, done.digest, dict(content)))
        maintain_module.maintain(kit.dataset, kit.host, no_progress, done.head)
        runs = kit.dataset.read_head().manifest.runs
        levels |= {run.level for run in runs}
        longest = max(longest, len(runs))
    assert levels == {"snap", "diff3", "diff2", "diff1"}
    assert longest <= 1 + 3 * (leveling.PUT_OFF * fan_out - 1)
    for seq, digest, expected in states:
        assert kit.dataset.manifest_at(seq).digest == digest
        if seq % 10 in (0, 1):
            target = tmp_path / f"at{seq}"
            assert kit.restore(target, seq=seq).digest == digest
            assert {path: value for path, value in read_tree(target).items() if value is not None} == expected
    assert not kit.verify().damage


def _write_changes(kit: Kit, before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
    for path in before.keys() - after.keys():
        (kit.directory / path.decode()).unlink()
    for path, value in after.items():
        if before.get(path) != value:
            put(kit.directory, path, value)


def test_a_directory_whose_chain_was_compacted_publishes_only_what_changed(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    kit.write({b"a": b"1", b"b": b"2"})
    kit.publish()
    kit.write({b"a": b"1", b"b": b"3"})
    kit.publish()
    compact(kit.dataset, kit.host, no_progress, is_full=True)
    assert not kit.publish().is_new
    kit.write({b"a": b"1"})
    done = kit.publish()
    assert (done.seq, done.deleted, done.added, done.changed) == (3, 1, 0, 0)
    assert [run.level for run in kit.dataset.read_head().manifest.runs] == ["snap", "diff1"]
