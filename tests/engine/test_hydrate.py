"""Hydration: all comes, in large ranges and once; demand is never behind it; it waits for a store that is away."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.core.entry import address_units
from synclib.core.eviction import Limits
from synclib.core.extent_map import Extent
from synclib.disk.blob_cache import BlobCache
from synclib.disk.hydrated import Stamp
from synclib.engine.attach import attach
from synclib.engine.host import no_progress
from synclib.engine.mount import Prepared, opened, prepare
from synclib.errors import Unavailable
from synclib.lazy import hydrate as hydrate_module
from synclib.lazy.blob import Blob, Extents
from synclib.lazy.hydrate import Hydrator
from synclib.lazy.maps import file_map
from synclib.lazy.touches import Touches
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit

PACK = "/pack/"
FILES, FILE_BYTES = 400, 20_000


class Counted(MemoryStore):
    """Counts ranges of packs; those of more than ``gate_above`` bytes wait for the gate, all fail while it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.gate_above = 0
        self.is_away = False
        self.away = ""  # part of the names of other objects that are
        self.tries = 0
        self.ranges: list[tuple[int, int]] = []

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if self.away and self.away in key:
            raise Unavailable("away", key=key)
        if PACK not in key:
            return super().get_ranges(key, ranges)
        self.tries += 1
        if self.is_away:
            raise Unavailable("away", key=key)
        self.ranges += ranges
        if any(stop - start > self.gate_above for start, stop in ranges):
            self.gate.wait(30)
        return super().get_ranges(key, ranges)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)


class Space:
    """A dataset of small files; blobs of it, each with its hydrator, on one cache."""

    def __init__(self, place: Path) -> None:
        self.store = Counted()
        self.store.put("boxlink.json", b"{}")
        self.kit = Kit(place, self.store)
        chance = random.Random(1)
        self.files = {b"%03d" % number: chance.randbytes(FILE_BYTES) for number in range(FILES)}
        self.kit.write(dict(self.files))
        self.kit.publish()
        self.prepared: Prepared = prepare(self.kit.dataset, self.kit.host, self.kit.dataset.read_head().manifest)
        self.file = open(self.prepared.metadata.map, "rb")  # noqa: SIM115 - closed by close()
        self.started: list[tuple[Hydrator, Blob]] = []
        self.words: list[Stamp] = []
        self.touches = Touches(SystemClock())
        self.pressure = 0.0

    def cache(self, limits: Limits | None = None) -> BlobCache:
        return BlobCache(Path(self.prepared.cache), self.prepared.address_end, limits)

    def start(
        self,
        trace: Iterable[tuple[float, Extent]] = (),
        *,
        cache: BlobCache | None = None,
        is_whole: bool = True,
        rate: int = 0,
        extents: Extents | None = None,
    ) -> tuple[Hydrator, Blob]:
        cache = cache or self.cache()
        extents = extents or file_map(self.file)
        blob = Blob(self.store, self.prepared.root, extents, cache, SystemClock())
        hydrator = Hydrator(
            blob,
            extents,
            cache,
            self.store,
            SystemClock(),
            rate=rate,
            is_whole=is_whole,
            total_bytes=self.prepared.plain_bytes,
            touches=self.touches,
            read_trace=lambda: trace,
            on_whole=self.words.append,
            pressure=lambda: self.pressure,
        )
        hydrator.start()
        self.started.append((hydrator, blob))
        return hydrator, blob

    def extents(self) -> list[Extent]:
        return [extent for page in file_map(self.file).walk() for extent in page]

    def whole(self) -> bytes:
        parts = [bytes(4096)]
        for path in sorted(self.files):
            parts.append(self.files[path].ljust(address_units(FILE_BYTES) * 4096, b"\0"))
        return b"".join(parts)

    def stop(self) -> None:
        for hydrator, blob in self.started:
            hydrator.stop()
            blob.close()
        self.started = []

    def close(self) -> None:
        self.store.gate.set()
        self.stop()
        self.file.close()


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    found = Space(tmp_path)
    yield found
    found.close()


def test_all_comes_once_in_large_ranges_and_is_said_only_then(space: Space) -> None:
    hydrator, blob = space.start()
    space.store.wait_for(lambda: hydrator.is_done)
    assert len(space.words) == 1
    figures = hydrator.figures()
    assert (figures["hydration"], figures["hydrated_bytes"]) == ("done", FILES * FILE_BYTES)
    assert len(space.store.ranges) <= 2
    assert sum(stop - start for start, stop in space.store.ranges) <= FILES * FILE_BYTES * 1.01
    assert blob.read(0, len(space.whole())) == space.whole()
    assert blob.counts.faults == 0
    assert len(space.store.ranges) <= 2


def test_demand_is_not_behind_what_is_fetched_in_the_background(space: Space) -> None:
    """The background's ranges do not come at all: whatever is read comes all the same, also what they are to bring."""
    space.store.gate.clear()
    space.store.gate_above = 500_000
    hydrator, blob = space.start()
    space.store.wait_for(lambda: bool(space.store.ranges))
    whole = space.whole()
    for start in range(4096, len(whole), 41 * 20_480):
        assert blob.read(start, 4096) == whole[start : start + 4096]
    assert not hydrator.is_done
    assert space.words == []
    space.store.gate.set()
    space.store.wait_for(lambda: hydrator.is_done)
    assert blob.read(0, len(whole)) == whole


def test_a_reader_shares_what_is_under_way(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it comes in time, nothing is asked for twice."""
    monkeypatch.setattr("synclib.lazy.blob.PATIENCE_S", 30.0)  # before the blob is made: it has seen no fetch
    space.store.gate.clear()
    hydrator, blob = space.start()
    space.store.wait_for(lambda: bool(space.store.ranges))
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(blob.read(4096, 100)))
    reader.start()
    space.store.wait_for(lambda: blob.counts.faults == 1)
    space.store.gate.set()
    reader.join()
    assert answers == [space.whole()[4096:4196]]
    space.store.wait_for(lambda: hydrator.is_done)
    assert sum(stop - start for start, stop in space.store.ranges) <= FILES * FILE_BYTES * 1.01


def test_what_fails_in_the_background_is_tried_again_for_a_reader(space: Space) -> None:
    """The background's store does not try again; a reader's does."""
    space.store.is_away = True
    hydrator, blob = space.start()
    space.store.wait_for(lambda: space.store.tries > 0)
    with pytest.raises(Unavailable):
        blob.read(4096, 100)
    space.store.is_away = False
    assert blob.read(4096, 100) == space.whole()[4096:4196]
    space.store.wait_for(lambda: hydrator.is_done)


def test_a_store_that_is_away_is_waited_for(space: Space) -> None:
    space.store.is_away = True
    hydrator, _ = space.start()
    space.store.wait_for(lambda: str(hydrator.figures()["hydration"]).startswith("waits"))
    tries = space.store.tries
    assert tries < 10
    space.store.is_away = False
    space.store.wait_for(lambda: hydrator.is_done)
    assert len(space.words) == 1


def test_a_page_of_the_map_that_does_not_come_is_waited_for(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for a large dataset, whose map is read from the store."""
    monkeypatch.setattr(hydrate_module, "_RETRY_FIRST_S", 0.02)
    attach(space.kit.dataset, space.kit.host, no_progress, entries_min=1)
    node = Kit(space.kit.place / "node", space.store)
    prepared = prepare(space.kit.dataset, node.host, space.kit.dataset.manifest_at(None))
    cache = BlobCache(Path(prepared.cache), prepared.address_end)
    with opened(prepared, space.store) as (extents, _):
        space.store.away = "/map/"
        hydrator, _ = space.start(cache=cache, extents=extents)
        space.store.wait_for(lambda: hydrator.figures()["hydration"] == "waits: unavailable: away")
        assert hydrator.fetched_units == 0
        space.store.away = ""
        space.store.wait_for(lambda: hydrator.is_done)
        assert hydrator.figures()["hydration"] == "done"
        space.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_when_all_is_made_durable_is_waited_for(
    space: Space, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(hydrate_module, "_RETRY_FIRST_S", 0.02)
    fails = threading.Event()
    fails.set()
    sync = os.fdatasync

    def failing(descriptor: int) -> None:
        if fails.is_set():
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    hydrator, _ = space.start()
    space.store.wait_for(lambda: str(hydrator.figures()["hydration"]).startswith("waits: "))
    assert not space.words
    fails.clear()
    space.store.wait_for(lambda: hydrator.is_done)
    assert len(space.words) == 1


def test_a_cache_that_is_deleted_meanwhile_is_filled_all_the_same(space: Space) -> None:
    hydrator, blob = space.start(rate=3_000_000)
    space.store.wait_for(lambda: hydrator.fetched_bytes > 0)
    shutil.rmtree(space.prepared.cache)
    hydrator.set_rate(0)
    space.store.wait_for(lambda: hydrator.is_done)
    assert blob.read(0, len(space.whole())) == space.whole()
    assert blob.counts.faults == 0


def test_another_life_goes_on_where_the_first_was(space: Space) -> None:
    """What a killed process leaves is the file and the record of what is in it."""
    hydrator, _ = space.start(rate=3_000_000)
    space.store.wait_for(lambda: hydrator.fetched_bytes > 2_000_000)
    space.stop()
    before = sum(stop - start for start, stop in space.store.ranges)
    assert space.words == []
    assert before < FILES * FILE_BYTES
    hydrator, _ = space.start()
    space.store.wait_for(lambda: hydrator.is_done)
    assert sum(stop - start for start, stop in space.store.ranges) <= FILES * FILE_BYTES * 1.01


def test_damage_in_the_cache_is_found_and_mended_before_it_is_called_whole(space: Space) -> None:
    hydrator, _ = space.start()
    space.store.wait_for(lambda: hydrator.is_done)
    space.stop()
    with open(Path(space.prepared.cache) / "blob", "r+b") as file:
        file.seek(5 * 20_480 + 4096)
        file.write(b"damage")
    count = len(space.store.ranges)
    hydrator, blob = space.start()
    space.store.wait_for(lambda: hydrator.is_done)
    assert len(space.store.ranges) == count + 1
    assert len(space.words) == 2
    assert blob.read(0, len(space.whole())) == space.whole()


def test_what_is_gone_from_the_store_is_never_called_whole(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydrate_module, "_RETRY_S", 0.02)
    (info,) = space.store.list("data/covers/pack/")
    packed = space.store.get(info.key, size_max=1 << 30)
    assert packed is not None
    space.store.delete(info.key)
    hydrator, _ = space.start()
    space.store.wait_for(lambda: hydrator.failed_extents > 3 * FILES)
    assert not hydrator.is_done
    assert space.words == []
    space.store.put(info.key, packed.data)
    space.store.wait_for(lambda: hydrator.is_done)


def test_a_walk_that_brings_nothing_is_not_begun_again_at_once(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is the matter with a cache that never believes what it holds."""
    cache = space.cache()
    monkeypatch.setattr(hydrate_module, "_RETRY_FIRST_S", 3600.0)
    monkeypatch.setattr(hydrate_module, "_RETRY_S", 3600.0)
    extents = space.extents()
    lost = extents[5]
    lacking = cache.lacking
    monkeypatch.setattr(cache, "lacking", lambda found: [e for e in found if e == lost or e in lacking([e])])
    hydrator, _ = space.start(cache=cache)
    space.store.wait_for(lambda: hydrator._vain_walks > 0)
    assert hydrator.fetched_units < 10
    assert not hydrator.is_done


def test_a_cache_that_may_evict_is_filled_where_all_fits_and_never_called_whole(space: Space) -> None:
    """What is fetched in the background never makes what is there go."""
    cache = space.cache(Limits(limit_bytes=1 << 30))
    hydrator, blob = space.start(cache=cache)
    space.store.wait_for(lambda: hydrator.figures()["hydration"] == "done")
    assert hydrator.figures()["hydrated_percent"] == 100.0
    assert space.words == []
    assert blob.read(0, len(space.whole())) == space.whole()
    assert blob.counts.faults == 0


def test_a_cache_that_is_too_small_for_all_is_filled_by_readers_alone(space: Space) -> None:
    hydrator, blob = space.start(cache=space.cache(Limits(limit_bytes=FILES * FILE_BYTES)))
    assert hydrator.figures()["hydration"] == "off"
    assert blob.read(4096, 100) == space.whole()[4096:4196]
    assert space.words == []


def test_what_other_seqs_have_in_a_small_cache_is_not_driven_out(space: Space) -> None:
    limits = Limits(limit_bytes=2 * FILES * FILE_BYTES)
    cache = space.cache(limits)
    os.pwrite(cache._data, os.urandom(FILES * FILE_BYTES), space.prepared.blob_bytes)
    hydrator, _ = space.start(cache=cache)
    space.store.wait_for(lambda: hydrator.figures()["hydration"] == "waits: limit")
    assert cache.held_bytes() <= limits.limit_bytes - limits.reserve_bytes  # type: ignore[operator]
    assert cache.counts.evicted_chunks == 0
    assert not hydrator.is_done


def test_others_writing_meanwhile_put_the_word_off(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they write is not what was looked at."""
    monkeypatch.setattr(hydrate_module, "_UNSETTLED_S", 0.02)
    cache = space.cache()
    stamps = iter([Stamp(1, 1, number, number) for number in range(7)])
    last: list[Stamp] = []

    def stamp() -> Stamp:
        last[:] = [next(stamps, Stamp(1, 1, 7, 7))]
        return last[0]

    monkeypatch.setattr(cache, "stamp", stamp)
    hydrator, _ = space.start(cache=cache)
    space.store.wait_for(lambda: hydrator.is_done)
    assert space.words == [Stamp(1, 1, 7, 7)]


def test_a_trace_comes_first_in_few_requests_and_in_its_order(space: Space) -> None:
    extents = space.extents()
    # Two parts of the shelf, far from each other; the later part is needed first.
    wanted = [(1.0 + index / 1000, extent) for index, extent in enumerate(extents[:100])]
    wanted += [(index / 1000, extent) for index, extent in enumerate(extents[300:])]
    hydrator, blob = space.start(wanted, is_whole=False)
    space.store.wait_for(lambda: hydrator.figures()["hydration"] == "off" and hydrator.fetched_units >= 2)
    assert len(space.store.ranges) <= 4
    first = extents[300].chunk.offset
    assert min(start for start, _ in space.store.ranges[:1]) >= first
    for extent in (*extents[:100], *extents[300:]):
        blob.read(extent.position, extent.chunk.plain_bytes)
    assert blob.counts.faults == 0
    # The rest did not come, but for what lies ahead of who reads on.
    assert not blob._cache.has(extents[250])


def test_what_lies_ahead_of_a_reader_comes_before_he_is_there(space: Space) -> None:
    _, blob = space.start(is_whole=False)
    whole = space.whole()
    step = 128 << 10
    for start in range(0, len(whole) - step, step):
        assert blob.read(start, step) == whole[start : start + step]
        extents = blob._map.overlapping(start + step, start + 2 * step)
        if start >= 4 * step:
            space.store.wait_for(lambda found=extents: all(map(blob._cache.has, found)))  # type: ignore[misc]
    assert blob.counts.faults <= 6


def test_a_full_disk_stops_the_background_not_the_readers(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    is_low = threading.Event()
    is_low.set()
    monkeypatch.setattr(Hydrator, "_is_disk_low", lambda *_: is_low.is_set())
    monkeypatch.setattr("synclib.core.hydration._DISK_PAUSE_S", 0.05)
    hydrator, blob = space.start()
    space.store.wait_for(lambda: hydrator.figures()["hydration"] == "waits: disk")
    assert blob.read(4096, 100) == space.whole()[4096:4196]
    assert hydrator.fetched_units == 0
    is_low.clear()
    space.store.wait_for(lambda: hydrator.is_done)


def test_touches_are_noted_once_and_in_their_order(space: Space) -> None:
    _, blob = space.start(is_whole=False)
    extents = space.extents()
    for index in (7, 3, 7, 200, 3):
        blob.read(extents[index].position, 10)
    assert [position for _, position in space.touches.in_order()] == [extents[i].position for i in (7, 3, 200)]


def test_the_rest_waits_while_everything_waits_for_the_disk(space: Space) -> None:
    space.pressure = 0.9
    hydrator, blob = space.start()
    hydrator.start_up_is_over()
    space.store.wait_for(lambda: hydrator.figures()["hydration"] == "waits: disk pressure")
    before = hydrator.fetched_units
    start = space.extents()[7].position
    assert blob.read(start, 1000) == space.whole()[start : start + 1000]
    assert hydrator.fetched_units == before
    space.pressure = 0.0
    space.store.wait_for(lambda: hydrator.is_done)
