"""A large file into a buffer: many ranges at once, every byte verified, right at every offset."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synclib.core.streaming import RANGE_BYTES_MAX, cut_ranges, landings_of
from synclib.engine.local import open_local
from synclib.errors import BoxlinkError, Corrupt, Unavailable
from synclib.lazy.open import open_view
from synclib.lazy.side_by_side import run_side_by_side
from synclib.lazy.view import RANGES_AT_ONCE
from synclib.reader import File
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore, cost_between
from tests.kit import Kit

PATIENCE_S = 20
MODEL, BYTES = b"models/large", 40 << 20


class Gated(MemoryStore):
    """Counts the ranges of packs that are asked for and how many are at once; ``gate`` is called in each."""

    def __init__(self) -> None:
        super().__init__("")
        self.gate: Callable[[int], None] = lambda number: None
        self.ranges: list[tuple[int, int]] = []
        self.most_at_once = self._at_once = 0
        self._count_lock = threading.Lock()

    def reset(self) -> None:
        self.gate = lambda number: None
        self.ranges = []
        self.most_at_once = 0

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" not in key:
            return super().get_ranges(key, ranges)
        with self._count_lock:
            self.ranges.extend(ranges)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = len(self.ranges)
        try:
            self.gate(number)
            return super().get_ranges(key, ranges)
        finally:
            with self._count_lock:
                self._at_once -= 1

    @property
    def at_once(self) -> int:
        return self._at_once


class Site:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = Gated()
        self.store.put("boxlink.json", b"{}")
        self.kit = Kit(place / "kit", self.store)
        noise = random.Random(7)
        half = noise.randbytes(BYTES // 2)
        # Bytes that do not compress, some that do, a hole, and the first again: one content at several places.
        self.data = half + b"weights " * (1 << 17) + bytes(5 << 20) + half[: 6 << 20] + noise.randbytes(13 << 20)
        self.kit.write({MODEL: self.data, b"small": b"alpha"})
        self.kit.publish()

    def pack_keys(self) -> list[str]:
        return [info.key for info in self.store.list(self.kit.dataset.root) if "/pack/" in info.key]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("readinto"))


@pytest.fixture
def site(published: Site) -> Site:
    published.store.reset()
    return published


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(RANGES_AT_ONCE) as found:
        yield found


def test_many_ranges_of_one_file_are_under_way_at_once(site: Site, executor: ThreadPoolExecutor) -> None:
    file = open_view(site.kit.dataset, executor=executor).open(MODEL)
    wanted = 8
    barrier = threading.Barrier(wanted)

    def gate(number: int) -> None:
        if number <= wanted:
            barrier.wait(PATIENCE_S)  # breaks, and with it the test, unless so many have begun before any has ended

    site.store.gate = gate
    buffer = bytearray(len(site.data) + 10)
    assert file.readinto(buffer, 0) == len(site.data)
    assert buffer[: len(site.data)] == site.data
    assert not any(buffer[len(site.data) :])
    assert wanted <= site.store.most_at_once <= RANGES_AT_ONCE
    assert max(stop - start for start, stop in site.store.ranges) <= RANGE_BYTES_MAX
    # What the file has several times was fetched once.
    assert sum(stop - start for start, stop in site.store.ranges) < len(site.data) - (10 << 20)
    assert len(site.store.ranges) <= 2 * -(-len(site.data) // RANGE_BYTES_MAX)


def test_no_more_ranges_are_under_way_than_there_are_threads_for(site: Site) -> None:
    with ThreadPoolExecutor(3) as few:
        file = open_view(site.kit.dataset, executor=few).open(MODEL)
        buffer = bytearray(len(site.data))
        assert file.readinto(buffer, 0) == len(site.data)
    assert buffer == site.data
    assert site.store.most_at_once <= 3


def test_a_window_bounds_what_is_under_way(executor: ThreadPoolExecutor) -> None:
    at_once: list[int] = []
    running = threading.Semaphore(4)

    def job() -> None:
        assert running.acquire(blocking=False), "a fifth job was begun"
        at_once.append(1)
        running.release()

    run_side_by_side([job] * 200, executor, 4)
    assert len(at_once) == 200


@pytest.fixture(scope="module")
def whole_file(published: Site, executor: ThreadPoolExecutor) -> File:
    return open_view(published.kit.dataset, executor=executor).open(MODEL)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_right_bytes_at_every_offset(published: Site, whole_file: File, data: st.DataObject) -> None:
    size = len(published.data)
    offset = data.draw(st.integers(0, size + 10) | st.integers(size - 70_000, size))
    length = data.draw(st.integers(0, 300_000) | st.integers(0, size + 10))
    buffer = bytearray(b"\xa5" * length)
    expected = published.data[offset : offset + length]
    assert whole_file.readinto(buffer, offset) == len(expected)
    assert buffer[: len(expected)] == expected
    assert buffer[len(expected) :] == b"\xa5" * (length - len(expected))


def test_a_small_file_and_odd_buffers(site: Site) -> None:
    view = open_view(site.kit.dataset)
    file = view.open(b"small")
    buffer = bytearray(10)
    assert file.readinto(buffer, 0) == 5
    assert buffer == b"alpha" + bytes(5)
    numbers = memoryview(bytearray(4)).cast("H")
    assert file.readinto(numbers, 1) == 4
    assert numbers.tobytes() == b"lpha"
    assert file.readinto(buffer, 5) == file.readinto(buffer, -1) == file.readinto(bytearray(), 0) == 0
    touched: list[tuple[bytes, int, int]] = []
    view.on_first_touch = lambda *what: touched.append(what)
    view.open(b"small").readinto(buffer, 2)
    assert touched == [(b"small", 2, 3)]


def test_damage_names_the_object_and_the_file(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    site = Site(tmp_path)
    key = site.pack_keys()[0]
    found = site.store.get(key, size_max=1 << 30)
    assert found is not None
    damaged = bytearray(found.data)
    damaged[len(damaged) // 2] ^= 1
    site.store.put(key, bytes(damaged))
    file = open_view(site.kit.dataset, executor=executor).open(MODEL)
    with pytest.raises(Corrupt) as caught:
        file.readinto(bytearray(len(site.data)), 0)
    assert caught.value.key == key
    assert caught.value.path == MODEL.decode()


def test_a_store_that_fails_in_the_middle_leaves_nobody_at_work(site: Site, executor: ThreadPoolExecutor) -> None:
    def gate(number: int) -> None:
        if number == 4:
            raise Unavailable("it does not answer")

    site.store.gate = gate
    for threads in (executor, None):
        site.store.ranges = []
        file = open_view(site.kit.dataset, executor=threads).open(MODEL)
        with pytest.raises(Unavailable) as caught:
            file.readinto(bytearray(len(site.data)), 0)
        assert site.store.at_once == 0
        assert caught.value.path == MODEL.decode()
        assert caught.value.key in site.pack_keys()
    assert len(site.store.ranges) == 4  # one by one, none comes after it


def test_a_restored_directory_is_read_where_it_is_right(site: Site, executor: ThreadPoolExecutor) -> None:
    data = site.place / "data"
    site.kit.restore(data / "covers")
    site.store.reset()
    view = open_local(str(data), "covers", site.store, executor=executor)
    try:
        file = view.open(MODEL)
        buffer = bytearray(len(site.data))
        assert file.readinto(buffer, 0) == len(site.data)
        assert buffer == site.data
        assert site.store.ranges == []

        # Of another seq's file, or a damaged one, that which is wrong comes from the store.
        local = data / "covers" / MODEL.decode()
        local.chmod(0o644)
        with local.open("r+b") as other:
            other.seek(10 << 20)
            other.write(b"another's")
        assert file.readinto(bytearray(1 << 20), 0) == 1 << 20
        assert site.store.ranges == []
        buffer = bytearray(len(site.data) - 5)
        assert file.readinto(buffer, 5) == len(buffer)
        assert buffer == site.data[5:]
        assert len(site.store.ranges) == 1

        local.unlink()
        site.store.reset()
        barrier = threading.Barrier(4)

        def gate(number: int) -> None:
            if number <= 4:
                barrier.wait(PATIENCE_S)

        site.store.gate = gate
        assert file.readinto(buffer, 5) == len(buffer)
        assert buffer == site.data[5:]
        alone = open_local(str(data), "covers", None)
        with pytest.raises(BoxlinkError) as caught:
            alone.open(MODEL).readinto(buffer, 0)
        assert isinstance(caught.value, Unavailable)
        alone.close()
    finally:
        view.close()


def test_ranges_hold_all_chunks_and_no_more_than_their_limit(site: Site) -> None:
    entry = open_view(site.kit.dataset).stat(MODEL)
    landings = landings_of(entry.chunks, 0)
    ranges = list(cut_ranges(landings))
    held = [landing for found in ranges for landing in found.landings]
    assert sorted(landing.offsets for landing in held) == sorted(landing.offsets for landing in landings)
    for found in ranges:
        assert found.stop - found.start <= RANGE_BYTES_MAX
        for landing in found.landings:
            assert landing.chunk.pack == found.pack
            assert found.start <= landing.chunk.offset
            assert landing.chunk.offset + landing.chunk.stored_bytes <= found.stop


def test_names_in_a_mounted_directory_are_looked_up_in_local_copies(site: Site) -> None:
    """A mount has no runs of its own beside it: whole copies are kept elsewhere, those of older chains go."""
    mounted, runs = site.place / "mounted", site.place / "runs"
    local = mounted / "covers" / MODEL.decode()
    local.parent.mkdir(parents=True)
    local.write_bytes(site.data)
    runs.mkdir()
    (runs / "of-an-older-chain").write_bytes(b"x")
    meter = Meter()
    metered = MeteredStore(site.store, meter)
    costs: list[int] = []
    for _ in range(2):
        opening = meter.mark()
        view = open_local(str(mounted), "covers", metered, 1, runs=runs)
        opened = meter.mark()
        buffer = bytearray(len(site.data))
        assert view.open(MODEL).readinto(buffer, 0) == len(site.data)
        assert buffer == site.data
        assert {entry.path for entry in view.walk()} == {b"models", MODEL, b"small"}
        assert set(cost_between(opened, meter.mark()).values()) == {0}
        view.close()
        costs.append(cost_between(opening, opened)["bytes_down"])
    assert costs[1] < costs[0]
    assert not (runs / "of-an-older-chain").exists()
