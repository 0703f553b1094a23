"""The far server, asked by the client that nodes use: right answers, counted, with the delays drawn; and lies."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from synclib.errors import BoxlinkError, Conflict, Corrupt, Missing, Unavailable
from synclib.store.memory import MemoryStore
from synclib.store.outcome import NotApplied
from synclib.store.s3 import Deadlines, S3Store
from tools.bench.distance import NEAR, Distance, Fates
from tools.bench.far_process import Cost, environment, serving
from tools.bench.far_server import BUCKET, LIES, FarServer

PACK = "data/covers/pack/01"
DATA = random.Random(1).randbytes(256_000)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("").items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def inner() -> MemoryStore:
    store = MemoryStore()
    store.put(PACK, DATA)
    return store


@pytest.fixture
def server(inner: MemoryStore) -> FarServer:
    return FarServer(inner)


@pytest.fixture
def store(server: FarServer) -> Iterator[S3Store]:
    with serving(server) as endpoint:
        yield S3Store(BUCKET, "", endpoint=endpoint, deadlines=Deadlines(2.0, 1.0, 5.0))


def test_it_is_a_store(store: S3Store) -> None:
    etag = store.put("head", b"first", if_absent=True)
    with pytest.raises(Conflict):
        store.put("head", b"other", if_absent=True)
    newer = store.put("head", b"second", if_match=etag)
    with pytest.raises(Conflict):
        store.put("head", b"third", if_match=etag)
    found = store.get("head", size_max=100)
    assert found is not None
    assert (found.data, found.etag) == (b"second", newer)
    assert store.get("head", size_max=100, if_none_match=newer) is None
    assert store.get_ranges(PACK, [(5, 10), (100, 1000)]) == [DATA[5:10], DATA[100:1000]]
    assert store.get_suffix(PACK, 10).data == DATA[-10:]
    for number in range(1500):
        store.put(f"many/{number:04}", b"x")
    assert [info.key for info in store.list("many/", after="many/0400")] == [f"many/{n:04}" for n in range(401, 1500)]
    store.delete("head")
    with pytest.raises(Missing):
        store.get("head", size_max=100)
    with pytest.raises(Corrupt):
        store.get_ranges(PACK, [(len(DATA) - 5, len(DATA) + 5)])


def test_requests_are_counted_and_side_by_side_is_one_round_trip(inner: MemoryStore) -> None:
    server = FarServer(inner, Distance(0.05, 0.05))
    with serving(server) as endpoint:
        store = S3Store(BUCKET, "", endpoint=endpoint)
        barrier = threading.Barrier(8)

        def read(number: int) -> None:
            barrier.wait()
            store.get_ranges(PACK, [(number, number + 10)])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
        store.get_suffix(PACK, 10)
        store.get_suffix(PACK, 20)
    cost = Cost.of(server.asked)
    assert (cost.requests, cost.round_trips, cost.body_bytes) == (10, 3, 110)


def test_no_answer_is_sooner_than_was_drawn(inner: MemoryStore) -> None:
    distance = Distance(0.01, 0.05)
    server = FarServer(inner, distance, seed=5)
    with serving(server) as endpoint:
        store = S3Store(BUCKET, "", endpoint=endpoint)
        for number in range(10):
            store.get_ranges(PACK, [(number, number + 1)])
    fates = Fates(distance, 5)
    drawn = [fates.draw(f"GET {PACK} bytes={number}-{number}").first_byte_s for number in range(10)]
    took = [row.end_s - row.begin_s for row in server.asked]
    assert all(took_s >= drawn_s for took_s, drawn_s in zip(took, drawn, strict=True))


def test_above_a_rate_it_refuses(inner: MemoryStore) -> None:
    server = FarServer(inner, Distance(0, 0, requests_per_s=5))
    with serving(server) as endpoint:
        store = S3Store(BUCKET, "", endpoint=endpoint)
        refused = 0
        for _ in range(50):
            try:
                store.get_ranges(PACK, [(0, 1)])
            except NotApplied:
                refused += 1
    assert refused > 20


def test_a_connection_that_is_reset_is_said(inner: MemoryStore) -> None:
    with serving(FarServer(inner, Distance(0, 0, reset_share=1.0))) as endpoint:
        store = S3Store(BUCKET, "", endpoint=endpoint)
        with pytest.raises(Unavailable):
            store.get_ranges(PACK, [(0, 200_000)])


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_an_error_or_other_bytes_and_then_the_truth_comes(server: FarServer, store: S3Store, lie: str) -> None:
    server.lie = lie
    try:
        (found,) = store.get_ranges(PACK, [(5000, 100_001)])
    except BoxlinkError:
        assert lie not in ("flipped", "wrong range")
    else:
        assert lie in ("flipped", "wrong range")
        assert len(found) == 95_001
        assert found != DATA[5000:100_001]
    server.lie = ""
    assert store.get_ranges(PACK, [(5000, 100_001)]) == [DATA[5000:100_001]]
    assert server.distance == NEAR
