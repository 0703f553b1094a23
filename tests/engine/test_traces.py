"""Traces in a store: who publishes one, which are kept, what they stand for later, and when a start-up ends."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from synclib.clock import ManualClock, ulid_text
from synclib.core.entry import ADDRESS_UNIT, Entry, Kind
from synclib.core.extent_map import Extent
from synclib.core.likely import BYTES_MAX, likely
from synclib.core.retention import Retention
from synclib.core.trace import QUIET_S, START_UP_S_MAX, TRACES_KEPT, Touch, Trace, encode_trace, union
from synclib.disk.start_trace import read_start_trace
from synclib.engine.collect import collect
from synclib.engine.host import Host, no_progress
from synclib.engine.mount import prepare_tree
from synclib.engine.repack import RepackOptions, repack_dataset
from synclib.engine.startup import StartUp
from synclib.engine.traces import extents_of, locate, publish_trace, read_traces, resolve
from synclib.errors import Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Buffer, Store
from synclib.store.memory import MemoryStore
from tests.kit import Kit


def make(place: Path) -> Kit:
    kit = Kit(place)
    chance = random.Random(4)
    kit.write(
        {b"%02d" % number: chance.randbytes(9000) for number in range(20)} | {b"a/large": chance.randbytes(5 << 20)}
    )
    kit.publish()
    return kit


def start_up_of(
    kit: Kit,
    cache: Path,
    ready: Path,
    *,
    store: Store | None = None,
    host: Host | None = None,
    is_seen_whole: bool = True,
) -> StartUp:
    """Of the newest seq, which is mounted as a tree."""
    manifest = kit.dataset.read_head().manifest
    dataset = kit.dataset if store is None else Dataset(store, kit.dataset.root)
    with contextlib.suppress(Missing):
        extents = EntryExtents(chain_of(kit))
        for entry in chain_of(kit).entries():
            extents.know(entry)
    word = " ".join((manifest.digest, *(ulid_text(run.ulid) for run in manifest.runs)))
    words = (manifest.seq, word, extents, cache, ready)
    return StartUp(dataset, host or kit.host, *words, is_seen_whole=is_seen_whole)


def extents_at(kit: Kit, positions: Sequence[int]) -> list[tuple[int, Extent]]:
    """(its place in the order, extent) of what stands there now or stood there in the first seq."""
    every = {
        extent.position: extent
        for seq in (1, None)
        for runs in [kit.dataset.manifest_at(seq).runs]
        for entry in Chain.of(StoreRuns(kit.store), kit.dataset.root, runs).entries()
        for extent in extents_of(entry)
    }
    return [(number, every[place]) for number, place in enumerate(positions)]


class Noting:
    """Notes what a store is asked for, and how many bytes of which objects."""

    def __init__(self, store: Store, asked: list[str]) -> None:
        self._store, self._asked = store, asked
        self.ranges: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if callable(found):
            self._asked.append(name)
        return found

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self._asked.append("get_ranges")
        self.ranges += [(key, stop - start) for start, stop in ranges]
        return self._store.get_ranges(key, ranges)


def chain_of(kit: Kit) -> Chain:
    return Chain.of(StoreRuns(kit.store), kit.dataset.root, kit.dataset.read_head().manifest.runs)


def position(kit: Kit, path: bytes, chunk: int = 0) -> int:
    """Where a chunk of a file stands now."""
    entry = next(entry for entry in chain_of(kit).entries() if entry.path == path)
    return extents_of(entry)[chunk].position


def test_the_last_three_are_kept_and_only_as_many_a_seq(tmp_path: Path) -> None:
    kit = make(tmp_path)
    keys = [publish_trace(kit.dataset, kit.host, 1, [Touch(b"%d" % n, 0, 1, n)]) for n in range(5)]
    assert all(keys[:3])
    assert keys[3:] == [None, None]
    assert len(read_traces(kit.dataset)) == 3
    newer = publish_trace(kit.dataset, kit.host, 2, [Touch(b"new", 0, 1, 0)])
    assert newer is not None
    assert [trace.seq for trace in read_traces(kit.dataset)] == [1, 1, 2]
    assert len(list(kit.store.list("data/covers/trace/"))) == 3
    assert publish_trace(kit.dataset, kit.host, 1, [Touch(b"old", 0, 1, 0)]) is None


def test_what_does_not_read_is_passed_over(tmp_path: Path) -> None:
    kit = make(tmp_path)
    key = publish_trace(kit.dataset, kit.host, 1, [Touch(b"00", 0, 1, 0)])
    assert key is not None
    good = kit.store.get(key, size_max=1 << 20)
    assert good is not None
    kit.store.put(key[:-1] + "0", good.data[:-3])
    kit.store.put("data/covers/trace/a stranger's", b"x")
    (trace,) = read_traces(kit.dataset)
    assert trace.touches == [Touch(b"00", 0, 1, 0)]


def test_touches_are_told_by_path_and_found_again_at_a_later_seq(tmp_path: Path) -> None:
    kit = make(tmp_path)
    touched = [(5, position(kit, b"07")), (9, position(kit, b"a/large", 2)), (11, position(kit, b"03"))]
    found = extents_at(kit, [place for _, place in touched])
    stranger = Extent(1, found[0][1].chunk)
    touches = resolve(
        chain_of(kit),
        [*((at_ms, extent) for (at_ms, _), (_, extent) in zip(touched, found, strict=True)), (12, stranger)],
    )
    assert [(touch.path, touch.at_ms) for touch in touches] == [(b"07", 5), (b"a/large", 9), (b"03", 11)]
    large = next(entry for entry in chain_of(kit).entries() if entry.path == b"a/large")
    assert touches[1].offset == sum(chunk.plain_bytes for chunk in large.chunks[:2])
    assert touches[1].length == large.chunks[2].plain_bytes
    located = list(locate(chain_of(kit), touches))
    assert sorted((at_ms, extent.position) for at_ms, extent in located) == sorted(touched)
    # Another content at a path, one that is gone, one that stays where it was.
    changed = {b"07": b"new" * 4000}
    kit.write(
        {b"%02d" % n: (kit.directory / f"{n:02}").read_bytes() for n in range(20) if n not in (3, 7)}
        | changed
        | {b"a/large": (kit.directory / "a/large").read_bytes(), b"00a": b"before", b"a": None}
    )
    kit.publish()
    again = dict(locate(chain_of(kit), touches))
    assert again.keys() == {5, 9}
    assert again[5].position == position(kit, b"07") != touched[0][1]
    assert again[9].position == touched[1][1]


def test_a_place_that_a_shorter_file_no_longer_has_is_left_out(tmp_path: Path) -> None:
    kit = make(tmp_path)
    entry = next(entry for entry in chain_of(kit).entries() if entry.path == b"a/large")
    beyond = [
        Touch(b"a/large", entry.size + 10, 100, 0),
        Touch(b"a", 0, 1, 0),
        Touch(b"a/large", entry.size - 1, 1 << 31, 0),
    ]
    found = [extent for _, extent in locate(chain_of(kit), beyond)]
    assert found == extents_of(entry)[-1:]


@pytest.mark.parametrize("how", ["told", "said", "quiet", "long"])
def test_a_start_up_ends_and_is_published_once(tmp_path: Path, how: str) -> None:
    kit = make(tmp_path)
    clock = ManualClock()
    host = kit.host.__class__("n7", clock, kit.host.entropy, kit.host.state, kit.host.cache)
    cache = tmp_path / "lazy"
    cache.mkdir()
    ready = tmp_path / "ready"

    def start_up() -> StartUp:
        return start_up_of(kit, cache, ready, host=host)

    first = start_up()
    entry = next(entry for entry in chain_of(kit).entries() if entry.path == b"07")
    other = next(entry for entry in chain_of(kit).entries() if entry.path == b"08")
    assert not first.touches.is_over()
    first.touches.note(extents_of(entry))
    if how == "told":
        ready.touch()
    elif how == "said":
        first.end()
    elif how == "quiet":
        clock.advance(QUIET_S - 1)
        assert not first.touches.is_over()
        clock.advance(1)
    else:
        for _ in range(int(START_UP_S_MAX)):
            assert not first.touches.is_over()
            clock.advance(1)
            first.touches.note(extents_of(other))
            first.touches._seen.clear()  # as if something new were touched each second
    over: list[None] = []
    first.run(lambda: over.append(None), threading.Event())
    assert len(over) == 1
    assert ready.exists()
    (trace,) = read_traces(kit.dataset)
    assert (trace.seq, trace.node, trace.touches[0].path) == (1, "n7", b"07")
    # One that comes after its end has nothing to fetch ahead; another mount does, but it publishes no second one.
    assert list(start_up().read_trace()) == []
    ready.unlink()
    second = start_up()
    assert next(iter(second.read_trace()))[1].position == entry.address * ADDRESS_UNIT
    second.touches.note(extents_of(entry))
    ready.touch()
    second.run(lambda: None, threading.Event())
    assert len(read_traces(kit.dataset)) == 1


def test_a_worker_that_came_later_publishes_nothing(tmp_path: Path) -> None:
    kit = make(tmp_path)
    start_up = start_up_of(kit, tmp_path, tmp_path / "ready", is_seen_whole=False)
    start_up.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == b"07")))
    (tmp_path / "ready").touch()
    start_up.run(lambda: None, threading.Event())
    assert read_traces(kit.dataset) == []


def test_who_has_nothing_to_add_does_not_look_through_the_chain(tmp_path: Path) -> None:
    kit = make(tmp_path)
    cache = tmp_path / "lazy"
    cache.mkdir()
    entry = next(entry for entry in chain_of(kit).entries() if entry.path == b"07")
    for number in range(TRACES_KEPT):
        publish_trace(kit.dataset, kit.host, 1, [Touch(b"%d" % number, 0, 1, number)])
    asked: list[str] = []
    store = Noting(kit.store, asked)
    start_up = start_up_of(kit, cache, tmp_path / "ready", store=cast("Store", store))
    start_up.touches.note(extents_of(entry))
    (tmp_path / "ready").touch()
    start_up.run(lambda: None, threading.Event())
    assert asked == ["list"]
    assert len(read_traces(kit.dataset)) == TRACES_KEPT


@pytest.mark.parametrize("files", [600, 2400])
def test_what_it_costs_to_publish_follows_the_trace_not_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr("synclib.engine.reading._JOB_FILES", 50)  # a pack
    monkeypatch.setattr("synclib.core.runfile.BLOCK_PLAIN_TARGET", 4000)
    kit = Kit(tmp_path)
    chance = random.Random(4)
    kit.write({b"%05d" % number: chance.randbytes(300) for number in range(files)})
    kit.publish()
    manifest = kit.dataset.read_head().manifest
    (run,) = manifest.runs
    cache = tmp_path / "lazy"
    cache.mkdir()
    store = Noting(kit.store, [])
    start_up = start_up_of(kit, cache, tmp_path / "ready", store=cast("Store", store))
    for path in (b"00300", b"00007"):
        start_up.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == path)))
    (tmp_path / "ready").touch()
    start_up.run(lambda: None, threading.Event())
    (trace,) = read_traces(kit.dataset)
    assert [touch.path for touch in trace.touches] == [b"00300", b"00007"]
    blocks = [size for key, size in store.ranges if size != run.tail_bytes]
    assert {key for key, _ in store.ranges} == {run.key(kit.dataset.root)}
    assert 0 < len(blocks) <= 4  # each of two packs lies in one block, or in two that are neighbours
    assert sum(blocks) < 8000 < run.object_bytes - run.tail_bytes


def test_a_path_that_newer_runs_have_taken_away_is_not_told(tmp_path: Path) -> None:
    """A file that was renamed may have its bytes where they were."""
    kit = make(tmp_path)
    touched = {path: position(kit, path) for path in (b"07", b"08", b"09")}
    content = {b"%02d" % n: (kit.directory / f"{n:02}").read_bytes() for n in range(20)}
    large = {b"a": None, b"a/large": (kit.directory / "a/large").read_bytes()}
    moved = {path: data for path, data in content.items() if path not in (b"07", b"08")}
    kit.write(moved | large | {b"07 moved": content[b"07"], b"08": b"changed" * 900})
    kit.publish()
    found = extents_at(kit, [*touched.values(), position(kit, b"07 moved"), position(kit, b"08")])
    told = {touch.path for touch in resolve(chain_of(kit), found)}
    assert told == {b"09", b"07 moved", b"08"}


def test_of_a_long_chain_only_the_blocks_that_are_needed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = make(tmp_path)
    publish_trace(kit.dataset, kit.host, 1, [Touch(b"%02d" % n, 0, 1, n) for n in range(20)])
    wanted = [position(kit, b"%02d" % n) for n in range(20)]
    for limit in (1 << 30, 0):
        monkeypatch.setattr("synclib.engine.startup._FILL_BYTES_MAX", limit)
        cache = tmp_path / str(limit) / "lazy"
        cache.mkdir(parents=True)
        start_up = start_up_of(kit, cache, tmp_path / "ready")
        assert sorted(extent.position for _, extent in start_up.read_trace()) == wanted
        copies = [path for path in (cache.parent / "run").iterdir() if path.name != "lock"]
        assert bool(copies) == (limit > 0)


def test_a_store_that_is_away_costs_nothing_but_the_trace(tmp_path: Path) -> None:
    kit = make(tmp_path)
    assert isinstance(kit.store, MemoryStore)
    kit.store.put(
        "data/covers/trace/" + "0" * 19 + "1-" + "0" * 26, encode_trace(Trace(1, "n", 1, [Touch(b"07", 0, 1, 0)]))
    )
    start_up = start_up_of(kit, tmp_path, tmp_path / "ready")
    assert len(list(start_up.read_trace())) == 1
    for info in list(kit.store.list("data/covers/run/")):
        kit.store.delete(info.key)
    elsewhere = tmp_path / "elsewhere/lazy"
    elsewhere.mkdir(parents=True)
    start_up = start_up_of(kit, elsewhere, tmp_path / "ready")
    assert list(start_up.read_trace()) == []
    assert union([]) == []


def test_a_start_without_a_store_replays_what_was_replayed_here_before(tmp_path: Path) -> None:
    kit = make(tmp_path)
    publish_trace(kit.dataset, kit.host, 1, [Touch(b"07", 0, 1, 5), Touch(b"03", 0, 1, 9)])
    cache = tmp_path / "lazy"
    cache.mkdir()
    first = list(start_up_of(kit, cache, tmp_path / "ready").read_trace())
    assert [extent.position for _, extent in sorted(first)] == [position(kit, b"07"), position(kit, b"03")]
    asked: list[str] = []
    store = cast("Store", Noting(kit.store, asked))
    again = start_up_of(kit, cache, tmp_path / "ready", store=store)
    assert sorted(again.read_trace()) == sorted(first)
    assert asked == []
    # One that is damaged is found anew.
    kept = cache / "start-trace"
    kept.write_bytes(kept.read_bytes()[:-9] + bytes(9))
    assert sorted(start_up_of(kit, cache, tmp_path / "ready").read_trace()) == sorted(first)


def test_what_this_node_read_itself_is_replayed_too_whatever_others_did(tmp_path: Path) -> None:
    kit = make(tmp_path)
    cache = tmp_path / "lazy"
    cache.mkdir()
    for number in range(TRACES_KEPT):
        publish_trace(kit.dataset, kit.host, 1, [Touch(b"01", 0, 1, number)])
    for path in (b"07", b"08"):  # of two starts the last one counts
        own = start_up_of(kit, cache, tmp_path / "ready")
        list(own.read_trace())
        own.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == path)))
        (tmp_path / "ready").touch()
        own.run(lambda: None, threading.Event())
        (tmp_path / "ready").unlink()
    wanted = {position(kit, b"01"), position(kit, b"08")}
    assert {extent.position for _, extent in start_up_of(kit, cache, tmp_path / "ready").read_trace()} == wanted
    # It is where it was at the next seq; the content of the one that has changed is not.
    kit.write(
        {b"%02d" % n: (kit.directory / f"{n:02}").read_bytes() for n in range(20) if n != 1}
        | {b"01": b"new" * 4000, b"a": None, b"a/large": (kit.directory / "a/large").read_bytes()}
    )
    kit.publish()
    start_up = start_up_of(kit, cache, tmp_path / "ready")
    found = {extent.position for _, extent in start_up.read_trace()}
    assert found == {position(kit, b"01"), position(kit, b"08")} != wanted
    assert read_start_trace(cache).word.startswith(kit.dataset.read_head().manifest.digest)


def repacked(kit: Kit) -> None:
    """The same seq with the same digest, in other packs; those before are gone."""
    before = kit.dataset.read_head().manifest
    done = repack_dataset(kit.dataset, kit.host, None, RepackOptions(), no_progress)
    assert (done.manifest.digest, done.new_packs > 0) == (before.digest, True)
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)


def in_many_packs(kit: Kit) -> None:
    content = {b"%02d" % n: (kit.directory / f"{n:02}").read_bytes() for n in range(20)}
    content |= {b"a": None, b"a/large": (kit.directory / "a/large").read_bytes()}
    for number in range(10):
        content[b"%02d" % number] = random.Random(number).randbytes(9000)
        kit.write(content)
        kit.publish()


def test_what_is_kept_here_is_found_again_after_a_repack(tmp_path: Path) -> None:
    kit = make(tmp_path)
    in_many_packs(kit)
    cache = tmp_path / "lazy"
    cache.mkdir()
    own = start_up_of(kit, cache, tmp_path / "ready")
    own.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == b"07")))
    own.end()
    own.run(lambda: None, threading.Event())
    for info in list(kit.store.list("data/covers/trace/")):
        kit.store.delete(info.key)  # it is all that there is
    ((_, before),) = start_up_of(kit, cache, tmp_path / "ready-2").read_trace()
    prepared = prepare_tree(kit.dataset, kit.host, kit.dataset.read_head().manifest, "")
    repacked(kit)
    assert prepare_tree(kit.dataset, kit.host, kit.dataset.read_head().manifest, "").word != prepared.word
    ((_, after),) = start_up_of(kit, cache, tmp_path / "ready-2").read_trace()
    assert (after.position, after.chunk.hash) == (before.position, before.chunk.hash)
    assert after.chunk == next(entry for entry in chain_of(kit).entries() if entry.path == b"07").chunks[0]
    assert after.chunk.pack != before.chunk.pack


def test_a_start_up_at_packs_that_are_gone_publishes_nothing(tmp_path: Path) -> None:
    """The seq was repacked since it was mounted: by their packs few paths are found."""
    kit = make(tmp_path)
    in_many_packs(kit)
    cache = tmp_path / "lazy"
    cache.mkdir()
    start_up = start_up_of(kit, cache, tmp_path / "ready")
    start_up.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == b"07")))
    repacked(kit)
    start_up.end()
    start_up.run(lambda: None, threading.Event())
    assert read_traces(kit.dataset) == []
    again = start_up_of(kit, cache, tmp_path / "ready-2")
    again.touches.note(extents_of(next(entry for entry in chain_of(kit).entries() if entry.path == b"07")))
    again.end()
    again.run(lambda: None, threading.Event())
    assert [touch.path for trace in read_traces(kit.dataset) for touch in trace.touches] == [b"07"]


def test_before_there_is_a_trace_the_files_at_the_top_come_first(tmp_path: Path) -> None:
    kit = Kit(tmp_path)
    chance = random.Random(4)
    files = {
        b"catalog": chance.randbytes(3000),
        b"index": chance.randbytes(90_000),
        b"deep/file": chance.randbytes(9000),
    }
    large = chance.randbytes(5 << 20)
    kit.write(files | {b"model": large, b"empty": b""})
    kit.publish()
    start_up = start_up_of(kit, tmp_path, tmp_path / "ready")
    found = sorted(start_up.read_trace(), key=lambda item: item[0])
    chain = chain_of(kit)
    model = extents_of(next(entry for entry in chain.entries() if entry.path == b"model"))
    ends = [model[0].position, model[-1].position]
    assert [extent.position for _, extent in found][:2] == [position(kit, b"catalog"), position(kit, b"index")]
    assert sorted(extent.position for _, extent in found[2:]) == sorted(ends)
    # What a start-up has needed is known better.
    publish_trace(kit.dataset, kit.host, 1, [Touch(b"deep/file", 0, 1, 0)])
    assert [extent.position for _, extent in start_up.read_trace()] == [position(kit, b"deep/file")]


def test_of_many_or_large_files_at_the_top_no_more_than_a_bound_comes() -> None:
    def entry(number: int, size: int) -> Entry:
        return Entry(b"", b"%05d" % number, Kind.FILE, size=size)

    touched = likely(entry(number, 100_000) for number in range(1000))
    assert sum(touch.length for touch in touched) <= BYTES_MAX
    assert len(likely(entry(number, 1 << 40) for number in range(1000))) <= 2 * BYTES_MAX // (2 << 20)
    assert likely([]) == []
