"""The in-process reader: four round trips to any file of ten million, and a cache on disk that may lie."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.entry import Kind
from synclib.core.names import pack_key, split_path
from synclib.disk.pieces import PieceCache
from synclib.errors import Corrupt, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo
from synclib.store.file import FileStore
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Kit
from tools.bench.far_process import Cost, environment, serving
from tools.bench.far_server import BUCKET, FarServer
from tools.bench.large_chain import ROOT, LargeChain
from tools.cli import boxlink


class Far:
    """A store in front of which every request waits, so that what is asked side by side overlaps."""

    def __init__(self, store: FileStore | MemoryStore, wait_s: float = 0.25) -> None:
        self.url, self._store, self._wait_s = store.url, store, wait_s

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        time.sleep(self._wait_s)
        return self._store.get(key, size_max=size_max, if_none_match=if_none_match)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        time.sleep(self._wait_s)
        return self._store.get_ranges(key, ranges)

    def get_suffix(self, key: str, length: int) -> Fetched:
        time.sleep(self._wait_s)
        return self._store.get_suffix(key, length)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return self._store.put(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._store.delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix, after=after)


@pytest.fixture(scope="module")
def ten_million(tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, LargeChain]:
    """Ten million entries in a chain of 20 runs."""
    place = tmp_path_factory.mktemp("large")
    store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
    store.create()
    return store, LargeChain(store, 10_000_000, 19, place)


def test_four_round_trips_to_any_file_of_ten_million(ten_million: tuple[FileStore, LargeChain]) -> None:
    store, chain = ten_million
    assert len(chain.manifest.runs) == 20
    assert chain.manifest.entry_count >= 10_000_000
    in_snap = next(path for path in chain.real if b"978" in path)
    in_diff = next(path for path in chain.real if b"new010" in path)
    for path in (in_snap, in_diff):
        meter = Meter()
        metered = MeteredStore(Far(store), meter)
        with ThreadPoolExecutor(24) as executor:
            view = open_view(Dataset(metered, ROOT), executor=executor)
            file = view.open(path)
            assert file.pread(0, 1 << 20) == chain.real[path]
        assert meter.round_trips <= 4
        # Head, 20 tails, data, and of the blocks that may hold the path, few.
        assert meter.requests["get"] <= 1 + 20 + 1 + 2 * 4
        assert meter.bytes_down < 4 << 20
        assert not meter.requests["list"]


def test_the_verb_takes_four_round_trips(
    ten_million: tuple[FileStore, LargeChain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`boxlink cat` on a node that has nothing, from a server that speaks S3."""
    store, chain = ten_million
    server = FarServer(store)
    server.quiet_s = 1.0
    with serving(server) as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        for number, part in enumerate((b"978", b"new010")):
            path = next(path for path in chain.real if part in path)
            for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
                monkeypatch.setenv(name, str(tmp_path / str(number) / name))
            server.asked.clear()
            done = CliRunner().invoke(boxlink, ["cat", "covers", path.decode(), "--store", f"s3://{BUCKET}"])
            assert done.exit_code == 0, done.output
            assert done.stdout_bytes == chain.real[path]
            cost = Cost.of(server.asked)
            assert cost.round_trips <= 4
            assert cost.requests <= 1 + 20 + 1 + 2 * 4
            assert cost.body_bytes < 4 << 20


def test_a_tree_that_is_entered_costs_no_more(ten_million: tuple[FileStore, LargeChain]) -> None:
    """The kernel asks for a directory, and then for what is in it."""
    store, made = ten_million
    for path in (next(path for path in made.real if part in path) for part in (b"978", b"new010")):
        meter = Meter()
        with ThreadPoolExecutor(24) as executor:
            chain = Chain.of(StoreRuns(MeteredStore(Far(store), meter), executor), ROOT, made.manifest.runs)
            directory, name = split_path(path)
            entered = chain.enter(directory)
            assert entered is not None
            assert entered[1].kind == Kind.DIRECTORY
            found = chain.enter(path)
            assert found is not None
            assert (found[1].path, chain.enter(directory + b"/no" + name)) == (path, None)
        assert meter.round_trips == 2  # after the head's: the tails; blocks
        assert meter.bytes_down < 4 << 20


def test_a_file_that_is_looked_up_brings_no_other_blocks(ten_million: tuple[FileStore, LargeChain]) -> None:
    store, made = ten_million
    meter = Meter()
    with ThreadPoolExecutor(24) as executor:
        chain = Chain.of(StoreRuns(MeteredStore(store, meter), executor), ROOT, made.manifest.runs)
        chain.open()
        before = meter.requests["get"]
        assert chain.enter(b"d0000016/nothing.jpg") is None
        assert meter.requests["get"] - before <= 4  # a Bloom filter may err


def test_what_is_not_there_costs_three_round_trips(ten_million: tuple[FileStore, LargeChain]) -> None:
    store, _ = ten_million
    meter = Meter()
    with ThreadPoolExecutor(24) as executor, pytest.raises(Missing):
        open_view(Dataset(MeteredStore(Far(store), meter), ROOT), executor=executor).open(b"d0000007/nothing")
    assert meter.round_trips <= 3


def test_a_listing_of_one_folder_of_ten_million_reads_little(ten_million: tuple[FileStore, LargeChain]) -> None:
    store, _ = ten_million
    meter = Meter()
    with ThreadPoolExecutor(24) as executor:
        view = open_view(Dataset(MeteredStore(Far(store, 0.02), meter), ROOT), executor=executor)
        listed = list(view.listdir(b"d0000016"))
    assert len(listed) == 1250 + 19
    assert meter.bytes_down < 4 << 20
    assert meter.requests["get"] < 100


def test_a_second_reader_asks_for_the_head_only(kit: Kit, tmp_path: Path) -> None:
    for _ in range(2):
        meter = Meter()
        cache = PieceCache(tmp_path / "pieces", 1 << 20)
        view = open_view(Dataset(MeteredStore(kit.store, meter), ROOT), cache=cache)
        assert view.open(b"a").pread(0, 100) == b"alpha"
        cache.close()
    assert meter.requests == {"get": 1, "put": 0, "list": 0, "delete": 0}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    kit = Kit(tmp_path / "kit")
    kit.write({b"a": b"alpha", b"b": b"beta"})
    kit.publish()
    kit.write({b"a": b"alpha", b"b": b"gamma", b"c": b"c"})
    kit.publish()
    return kit


def test_damage_in_the_cache_is_a_miss(kit: Kit, tmp_path: Path) -> None:
    def read() -> int:
        meter = Meter()
        cache = PieceCache(tmp_path / "pieces", 1 << 20)
        view = open_view(Dataset(MeteredStore(kit.store, meter), ROOT), cache=cache)
        assert view.open(b"b").pread(0, 100) == b"gamma"
        cache.close()
        return meter.requests["get"]

    cold = read()
    assert read() == 1
    for path in (tmp_path / "pieces").glob("*.pieces"):
        data = path.read_bytes()
        path.write_bytes(bytes(byte ^ 1 for byte in data))
    assert read() == cold
    assert read() == 1
    for path in (tmp_path / "pieces").glob("*.pieces"):
        path.unlink()
    assert read() == cold
    (tmp_path / "pieces" / "pieces.sqlite").write_bytes(b"no database" * 1000)
    assert read() == cold
    assert read() == 1


def test_a_cache_that_lies_with_a_right_guard_is_found_out(kit: Kit, tmp_path: Path) -> None:
    """Somebody wrote other bytes under the right names, guards and all: every digest is looked at again."""
    cache = PieceCache(tmp_path / "pieces", 1 << 20)
    view = open_view(kit.dataset, cache=cache)
    file = view.open(b"b")
    assert file.pread(0, 100) == b"gamma"
    for name, length in cache._database.execute("SELECT name, length FROM piece").fetchall():  # type: ignore[union-attr]
        cache.put(name, b"x" * length)
    again = open_view(kit.dataset, cache=cache)
    assert again.open(b"b").pread(0, 100) == b"gamma"
    cache.close()


def test_the_cache_keeps_to_its_limit_and_drops_the_oldest(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, 800_000)
    for number in range(200):
        cache.put(b"%d" % number, bytes([number % 256]) * 10_000)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.pieces")) <= 800_000
    assert cache.get(b"0") is None
    assert cache.get(b"199") == bytes([199]) * 10_000
    cache.put(b"huge", bytes(200_000))
    assert cache.get(b"huge") is None
    cache.close()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    one, two = PieceCache(tmp_path, 1 << 20), PieceCache(tmp_path, 1 << 20)
    threads = [threading.Thread(target=_fill, args=(cache, base)) for cache, base in ((one, 0), (two, 500))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.get(b"%d" % number) == b"%d" % number * 50 for number in range(500, 600))
    assert all(two.get(b"%d" % number) == b"%d" % number * 50 for number in range(100))
    one.close()
    two.close()


def _fill(cache: PieceCache, base: int) -> None:
    for number in range(base, base + 100):
        cache.put(b"%d" % number, b"%d" % number * 50)


def test_a_disk_that_refuses_makes_reading_only_slower(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "pieces").write_text("a file where the directory should be")
    cache = PieceCache(tmp_path / "pieces", 1 << 20)
    assert open_view(kit.dataset, cache=cache).open(b"a").pread(0, 10) == b"alpha"
    cache.close()


def test_a_chunk_that_is_damaged_in_the_store_is_an_error_also_with_a_cache(kit: Kit, tmp_path: Path) -> None:
    for info in list(kit.store.list(pack_key(ROOT, ""))):
        found = kit.store.get(info.key, size_max=1 << 20)
        assert found is not None
        kit.store.put(info.key, bytes(byte ^ 1 for byte in found.data))
    cache = PieceCache(tmp_path / "pieces", 1 << 20)
    with pytest.raises(Corrupt):
        open_view(kit.dataset, cache=cache).open(b"a").pread(0, 10)
    with pytest.raises(Corrupt):
        open_view(kit.dataset, cache=cache).open(b"a").pread(0, 10)
    cache.close()
