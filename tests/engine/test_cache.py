"""A cache that may not grow: right bytes whoever evicts, whatever dies, whatever the disk says."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import Limits, is_held
from synclib.core.extent_map import Extent
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_record import CacheRecord
from synclib.disk.hydrated import note_native
from synclib.disk.start_trace import StartTrace, write_start_trace
from synclib.errors import Unavailable
from synclib.lazy.scrub import scrub
from tests.cached_space import CachedSpace, churn, publish_space, read_at_random


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("space")
    publish_space(place)
    return place


@pytest.fixture
def place(published: Path, tmp_path: Path) -> Path:
    """A published space, and no cache of it."""
    with CachedSpace(published) as space:
        directory = space.directory
    for name in ("blob", "held", "generation", "clock", "pins.json", "start-trace"):
        (directory / name).unlink(missing_ok=True)
    return published


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def start(verb: str, place: Path, number: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.cached_space", verb, str(place), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_evict_all_the_time_read_right_bytes(place: Path) -> None:
    readers = [start("read", place, number) for number in range(3)]
    try:
        with CachedSpace(place) as space:
            while any(reader.poll() is None for reader in readers):
                assert space.cache.held_bytes() <= 8 << 20
                time.sleep(0.01)
        told = [[int(word) for word in reader.communicate()[0].split()] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert sum(evicted for evicted, _ in told) > 1 << 20
    assert min(hits for _, hits in told) > 100


def test_bytes_that_another_process_takes_away_are_never_shown(place: Path) -> None:
    """What a read finds while it is taken away, or after, is not handed out: the reader is told that it is not here."""
    churning = start("churn", place)
    found = lacked = 0
    try:
        assert churning.stdout is not None
        churning.stdout.readline()
        with CachedSpace(place) as space:
            extents, chance = space.extents(), random.Random(1)
            deadline = time.monotonic() + 60
            while (found < 5000 or lacked < 500) and time.monotonic() < deadline:
                index = chance.randrange(len(extents) - 3)
                some = extents[index : index + 3]
                first, stop = some[0].position, some[-1].stop
                data = space.cache.read(first, stop - first, some)
                if data is None:
                    lacked += 1
                else:
                    found += 1
                    assert data == space.whole[first:stop]
            assert churning.poll() is None
            assert space.cache.counts.damaged == 0
    finally:
        churning.kill()
        churning.wait()
    assert found >= 5000
    assert lacked >= 500


def test_a_process_that_is_killed_while_it_evicts_leaves_nothing_wrong(place: Path) -> None:
    chance = random.Random(3)
    for _ in range(12):
        churning = start("churn", place)
        assert churning.stdout is not None
        churning.stdout.readline()
        time.sleep(chance.random() * 0.15)  # somewhere in it
        churning.send_signal(signal.SIGKILL)
        churning.wait()
        with CachedSpace(place) as space:
            space.assert_all_right()
            assert space.cache.counts.damaged == 0
    with CachedSpace(place) as space:
        # What was written and not recorded is found too.
        space.evictor().evict_to(0)
        assert space.cache.held_bytes() == 0
        space.assert_all_right()


def test_what_stands_beside_bytes_that_were_being_taken_away_is_read_again(place: Path) -> None:
    """By whoever comes next, with the store away; and what is not here is fetched once."""
    with CachedSpace(place) as space:
        space.assert_all_right()
    dying = start("die", place)
    assert dying.wait() == -signal.SIGKILL
    with CachedSpace(place) as space:
        extents = space.extents()
        assert len(space.cache.lacking(extents)) == 1
        space.assert_all_right()
        assert space.blob.counts.fetched_chunks == 1
        assert space.cache.counts.damaged == 0


def test_a_look_at_what_is_being_taken_away_puts_no_lock_to_rest(place: Path) -> None:
    with CachedSpace(place) as space, CachedSpace(place) as other:
        space.assert_all_right()
        extent = space.extents()[0]
        unit = extent.position // ADDRESS_UNIT
        with ThreadPoolExecutor(1) as pool:
            with other.cache.record.locked() as has_lock, other.cache.record.taking_away(unit, unit + 1):
                assert has_lock
                assert not space.cache.has(extent)
                waiting = pool.submit(is_locked, space)
                time.sleep(0.1)  # it has come to the lock
            assert waiting.result(), "it waited for it"
        assert space.cache.has(extent)


def is_locked(space: CachedSpace) -> bool:
    with space.cache.record.locked() as has_lock:
        return has_lock


def test_a_power_cut_at_any_moment_leaves_nothing_wrong(place: Path, tmp_path: Path) -> None:
    """Its model: each file as it was at some moment of its own."""
    with CachedSpace(place) as space:
        is_over = threading.Event()
        churning = threading.Thread(target=churn, args=(space, is_over.is_set))
        churning.start()
        try:
            for number in range(6):
                copy = tmp_path / str(number)
                copy.mkdir()
                names = ["blob", "held", "generation", "clock"]
                random.Random(number).shuffle(names)
                for name in names:
                    shutil.copyfile(space.directory / name, copy / name)
                    time.sleep(0.01)
        finally:
            is_over.set()
            churning.join()
    for number in range(6):
        with CachedSpace(place, directory=tmp_path / str(number)) as space:
            space.assert_all_right()
            space.evictor().evict_to(0)
            assert space.cache.held_bytes() == 0
            space.assert_all_right()
        shutil.rmtree(tmp_path / str(number))


def test_what_is_forgotten_is_durable_before_its_bytes_go(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CachedSpace(place) as space:
        space.assert_all_right()
        durable = bytearray(space.cache.record.states(0, space.cache.record.units))
        sync, take_away = space.cache.record.sync_states, BlobCache.take_away
        taken = 0

        def synced() -> None:
            sync()
            durable[:] = space.cache.record.states(0, space.cache.record.units)

        def watched(cache: BlobCache, first: int, stop: int) -> None:
            nonlocal taken
            taken += stop - first
            assert not any(is_held(state) for state in durable[first:stop])
            take_away(cache, first, stop)

        monkeypatch.setattr(space.cache.record, "sync_states", synced)
        monkeypatch.setattr(BlobCache, "take_away", watched)
        space.evictor().evict_to(len(space.whole) // 3)
        assert taken * ADDRESS_UNIT >= len(space.whole) // 2
        space.assert_all_right()


def test_what_no_mounted_seq_has_goes_first_and_what_is_pinned_never(place: Path) -> None:
    with CachedSpace(place) as space:
        space.assert_all_right()
        extents = space.extents()
        wanted = {extent.position // ADDRESS_UNIT for extent in extents[::2]}
        evictor = space.evictor(lambda first, stop: {unit for unit in wanted if first <= unit < stop})
        pinned = extents[41]
        evictor.pins.pin("041", [(pinned.position // ADDRESS_UNIT, pinned.position // ADDRESS_UNIT + 1)])
        evictor.evict_to(space.cache.held_bytes() - 500_000)
        assert all(space.cache.has(extent) for extent in extents[::2])
        assert sum(not space.cache.has(extent) for extent in extents[1::2]) > 10
        evictor.evict_to(0)
        assert [extent for extent in extents if space.cache.has(extent)] == [pinned]
        assert evictor.pins.unpin("041")
        evictor.evict_to(0)
        assert space.cache.held_bytes() == 0


def test_room_is_made_while_the_store_is_away(place: Path) -> None:
    """It may have to say what no mounted seq has: that goes first where it does."""
    with CachedSpace(place) as space:
        space.assert_all_right()
        held, asked = space.cache.held_bytes(), []

        def wanted(first: int, stop: int) -> set[int]:
            asked.append(first)
            raise Unavailable("away")

        space.evictor(wanted).evict_to(held // 2)
        assert asked
        assert space.cache.held_bytes() <= held // 2
        space.assert_all_right()


def test_a_worker_hashes_what_it_holds_at_the_rate_that_it_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synclib.engine.cache_upkeep._SCRUB_FIRST_S", 0.0)
    with CachedSpace(place) as space:
        space.assert_all_right()
        space.cache.sync()
        lost = space.extents()[7]
        with open(space.cache.path, "r+b") as file:
            file.seek(lost.position)
            file.write(bytes([space.whole[lost.position] ^ 1]))
        upkeep = space.upkeep()
        upkeep.rate.bytes_per_s = 1
        upkeep.start()
        wait(lambda: upkeep.scrubbed.bytes > 0)
        first = upkeep.scrubbed.bytes
        assert first < space.cache.right_bytes // 4  # the next is not before its time
        upkeep.end()
        assert upkeep.scrubbed.bytes == first
        upkeep = space.start_upkeep()
        wait(lambda: space.cache.counts.damaged == 1)
        assert not space.cache.has(lost)


def test_nothing_goes_while_the_kernel_may_have_the_file_mounted_without_us(place: Path) -> None:
    with CachedSpace(place) as space:
        space.assert_all_right()
        held = space.cache.held_bytes()
        note_native(space.directory)
        try:
            space.evictor().evict_to(0)
            space.evictor(lambda first, stop: set()).evict_to(0)
            assert space.cache.held_bytes() == held
            assert all(map(space.cache.has, space.extents()))
        finally:
            (space.directory / "native").unlink()
        space.evictor().evict_to(0)
        assert space.cache.held_bytes() == 0


def test_what_is_read_again_outlives_a_scan(place: Path) -> None:
    with CachedSpace(place, Limits(2 << 20)) as space:
        extents = space.extents()
        hot, cold, large = extents[:30], extents[30:400], extents[400:]
        evictor = space.evictor()

        def read(some: list[Extent]) -> None:
            for extent in some:
                space.blob.read(extent.position, extent.chunk.plain_bytes)
                evictor.keep_reserve()

        for first in range(0, 370, 125):
            read(hot)
            read(cold[first : first + 125])
        read(hot)
        read(large)
        assert sum(space.cache.has(extent) for extent in hot) >= 28
        assert sum(space.cache.has(extent) for extent in cold) < 100
        assert space.cache.counts.evicted_bytes > 4 << 20


def test_what_a_start_up_needs_outlives_a_scan_up_to_a_bound(place: Path) -> None:
    """It was read once, and is not read again until the next start."""
    with CachedSpace(place, Limits(2 << 20)) as space:
        extents = space.extents()
        boot, cold = extents[100:300], extents[300:]
        evictor = space.evictor()

        def scan() -> set[int]:
            for extent in [*boot, *extents[:100], *cold]:
                space.blob.read(extent.position, extent.chunk.plain_bytes)
                evictor.keep_reserve()
            return {index for index, extent in enumerate(boot) if space.cache.has(extent)}

        assert len(scan() & set(range(40))) < 5
        write_start_trace(space.directory, StartTrace("digest", [(n, extent) for n, extent in enumerate(boot)]))
        stayed = scan()
        sizes = [extent.chunk.plain_bytes for extent in boot]
        first = [index for index in range(len(boot)) if sum(sizes[: index + 1]) <= 1 << 19]
        assert len(first) > 40
        assert stayed >= set(first)
        assert space.cache.held_bytes() <= 2 << 20
        # Who says what shall go is obeyed.
        evictor.evict_to(0)
        assert space.cache.held_bytes() == 0
        space.assert_all_right()


def test_a_start_trace_that_does_not_read_spares_nothing(place: Path) -> None:
    with CachedSpace(place, Limits(2 << 20)) as space:
        (space.directory / "start-trace").write_bytes(b"BXLY damaged")
        for extent in space.extents():
            space.blob.read(extent.position, extent.chunk.plain_bytes)
            space.evictor().keep_reserve()
        assert space.cache.held_bytes() <= 2 << 20
        space.evictor().evict_to(0)
        assert space.cache.held_bytes() == 0


def test_a_cache_without_room_is_no_error_of_a_reader(place: Path) -> None:
    with CachedSpace(place, Limits(None, floor_bytes=1 << 60)) as space:
        read_at_random(space, 1, reads=50)
        assert space.cache.held_bytes() == 0
        assert space.cache.counts.unkept > 0


def test_a_lock_that_is_never_given_back_is_no_error_of_a_reader(place: Path) -> None:
    with CachedSpace(place) as space, CachedSpace(place) as other, other.cache.record.locked():
        extent = space.extents()[0]
        assert space.blob.read(extent.position, 100) == space.right(extent)[:100]
        assert space.cache.counts.unkept > 0


def test_a_disk_that_fails_is_no_error_of_a_reader(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CachedSpace(place) as space:
        with monkeypatch.context() as broken:
            broken.setattr("os.pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            space.assert_all_right()
            assert space.cache.counts.unkept > 0
        assert not any(map(is_held, space.cache.record.states(0, space.cache.record.units)))
        space.assert_all_right()


def test_a_scrub_finds_what_is_damaged_on_the_disk(place: Path) -> None:
    with CachedSpace(place) as space:
        space.assert_all_right()
        space.cache.sync()
        extents = space.extents()
        with open(space.cache.path, "r+b") as file:
            for extent in extents[::50]:
                file.seek(extent.position)
                file.write(bytes([space.whole[extent.position] ^ 1]))
        done = scrub(space.cache, [space.map], space.prepared.address_end, lambda _: True)
        assert (done.chunks, done.damaged) == (len(extents), len(extents[::50]))
        assert not any(space.cache.has(extent) for extent in extents[::50])
        assert scrub(space.cache, [space.map], space.prepared.address_end, lambda _: True).damaged == 0
        space.assert_all_right()


@given(st.sets(st.integers(0, 6000), max_size=12), st.integers(0, 700), st.integers(1, 5000))
def test_only_blocks_that_change_are_written(changed: set[int], first: int, length: int) -> None:
    """What is a hole of the record stays one: a full disk has no block for whoever is about to empty it."""
    with tempfile.TemporaryDirectory() as place, contextlib.closing(CacheRecord(Path(place), 8192)) as record:
        before = record.states(first, first + length)
        states = bytearray(before)
        for at in changed:
            if at < length:
                states[at] = 9
        written: set[int] = set()

        def pwrite(descriptor: int, data: bytes, start: int) -> int:
            written.update(range(start // 512, -(-(start + len(data)) // 512)))
            return real(descriptor, data, start)

        real = os.pwrite
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pwrite", pwrite)
            record.change_states(first, before, bytes(states))
        assert record.states(first, first + length) == states
        assert written == {(first + at) // 512 for at in changed if at < length}
