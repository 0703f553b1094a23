"""One suite for every store: what synclib/store/base.py says in prose."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synclib.clock import SystemEntropy
from synclib.errors import Conflict, Corrupt, Invalid, Missing
from synclib.store.base import Fetched, Store
from synclib.store.open import open_store
from tests.conformance.conftest import REAL_ENDPOINT, REAL_S3


def get(store: Store, key: str) -> bytes:
    fetched = store.get(key, size_max=1 << 20)
    assert fetched is not None
    return fetched.data


def test_put_then_get(store: Store) -> None:
    etag = store.put("a/b", b"hello")
    fetched = store.get("a/b", size_max=5)
    assert fetched is not None
    assert (fetched.data, fetched.etag, fetched.size) == (b"hello", etag, 5)


def test_replaced_objects_have_another_etag(store: Store) -> None:
    etags = {store.put("a", b"%d" % number) for number in range(20)}
    assert len(etags) == 20
    assert get(store, "a") == b"19"


def test_missing(store: Store) -> None:
    for call in (
        lambda: store.get("no", size_max=1),
        lambda: store.get_ranges("no", [(0, 1)]),
        lambda: store.get_suffix("no", 1),
    ):
        with pytest.raises(Missing):
            call()
    store.delete("no")


def test_not_modified(store: Store) -> None:
    etag = store.put("a", b"1")
    assert store.get("a", size_max=9, if_none_match=etag) is None
    store.put("a", b"2")
    fetched = store.get("a", size_max=9, if_none_match=etag)
    assert fetched is not None
    assert fetched.data == b"2"


def test_larger_than_expected_is_corrupt(store: Store) -> None:
    store.put("a", bytes(1000))
    with pytest.raises(Corrupt):
        store.get("a", size_max=999)


def test_ranges(store: Store) -> None:
    store.put("a", bytes(range(200)))
    assert store.get_ranges("a", [(0, 1), (199, 200), (10, 20)]) == [b"\0", b"\xc7", bytes(range(10, 20))]
    for bad in [(199, 201), (200, 201), (500, 600)]:
        with pytest.raises(Corrupt):
            store.get_ranges("a", [(0, 5), bad])


def test_suffix(store: Store) -> None:
    store.put("a", bytes(range(100)))
    assert store.get_suffix("a", 3).data == bytes([97, 98, 99])
    assert store.get_suffix("a", 3).size == 100
    assert store.get_suffix("a", 1000).data == bytes(range(100))
    etag = store.put("empty", b"")
    assert store.get_suffix("empty", 1000) == Fetched(b"", etag, 0)


def test_create_if_absent(store: Store) -> None:
    store.put("a", b"1", if_absent=True)
    with pytest.raises(Conflict):
        store.put("a", b"2", if_absent=True)
    assert get(store, "a") == b"1"


def test_compare_and_swap(store: Store) -> None:
    first = store.put("a", b"1")
    second = store.put("a", b"2", if_match=first)
    with pytest.raises(Conflict):
        store.put("a", b"3", if_match=first)
    with pytest.raises(Conflict):
        store.put("b", b"3", if_match=second)
    assert get(store, "a") == b"2"
    with pytest.raises(Conflict):
        store.delete("a", if_match=first)
    store.delete("a", if_match=second)
    with pytest.raises(Missing):
        get(store, "a")


def test_put_from_a_file(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    path = tmp_path / "body"
    path.write_bytes(data)
    store.put("a", path)
    assert store.get("a", size_max=len(data)).data == data  # type: ignore[union-attr]


def test_bodies_are_any_bytes(store: Store) -> None:
    for body in (b"", bytearray(b"xy"), memoryview(b"abcdef")[2:4], memoryview(bytearray(b"abcdef"))[2:4]):
        store.put("a", body)
        assert get(store, "a") == bytes(body)


def test_conditions_hold_for_files_too(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"from a file")
    etag = store.put("a", path, if_absent=True)
    with pytest.raises(Conflict):
        store.put("a", path, if_absent=True)
    store.put("a", b"newer", if_match=etag)
    with pytest.raises(Conflict):
        store.put("a", path, if_match=etag)
    assert get(store, "a") == b"newer"


def test_listing_is_sorted_by_bytes_and_resumes(store: Store) -> None:
    keys = ["p/a-b", "p/a/b", "p/a0", "p/b", "p/é", "p0", "q"]
    etags = {key: store.put(key, b"xy") for key in reversed(keys)}
    assert [info.key for info in store.list("")] == keys
    assert [info.key for info in store.list("p/")] == keys[:5]
    assert [info.key for info in store.list("p/a")] == keys[:3]
    assert [info.key for info in store.list("p/a0")] == keys[2:3]
    assert [info.key for info in store.list("p/", after="p/a-b")] == keys[1:5]
    assert [info.key for info in store.list("p/", after="p/a/b")] == keys[2:5]
    assert [info.key for info in store.list("p/", after="p/a/")] == keys[1:5]
    assert [info.key for info in store.list("p/b", after="p/a")] == ["p/b"]
    assert [(info.size, info.etag) for info in store.list("q")] == [(2, etags["q"])]
    assert list(store.list("zzz")) == []
    assert list(store.list("p/", after="p/é")) == []
    assert list(store.list("../")) == []


def test_an_object_beside_objects_below_its_name(store: Store) -> None:
    """Works, or is refused in words: a server on a file system may not be able to hold both."""
    store.put("p/a/b", b"below")
    refusal: Invalid | None = None
    try:
        store.put("p/a", b"above")
    except Invalid as error:
        refusal = error
    if refusal is not None:
        assert os.environ.get("BOXLINK_TEST_S3"), "only a server that is not ours may refuse"
        assert "keeps objects as files" in refusal.hint
        assert get(store, "p/a/b") == b"below"
        return
    assert [info.key for info in store.list("p/")] == ["p/a", "p/a/b"]
    assert (get(store, "p/a"), get(store, "p/a/b")) == (b"above", b"below")
    store.delete("p/a")
    assert [info.key for info in store.list("p/")] == ["p/a/b"]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\n", "a\0", "x" * 1025, "\ud800"])
def test_bad_keys(store: Store, key: str) -> None:
    with pytest.raises(Invalid):
        store.put(key, b"")


def test_one_winner_in_a_race_to_create(racing_store: Store) -> None:
    for round_ in range(5):
        winners = race(8, lambda number, key=f"race/{round_}": racing_store.put(key, b"%d" % number, if_absent=True))
        assert len(winners) == 1


def test_increments_by_compare_and_swap_lose_nothing(racing_store: Store) -> None:
    store = racing_store
    store.put("count", b"0")

    def increment(_: int) -> None:
        for _ in range(10):
            while True:
                fetched = store.get("count", size_max=99)
                assert fetched is not None
                try:
                    store.put("count", b"%d" % (int(fetched.data) + 1), if_match=fetched.etag)
                    break
                except Conflict:
                    continue

    race(4, increment)
    assert get(store, "count") == b"40"


def race(number: int, work: object) -> list[int]:
    """Run ``work(i)`` in threads at once; the numbers of those that met no Conflict."""
    barrier = threading.Barrier(number)
    winners: list[int] = []
    others: list[BaseException] = []

    def one(index: int) -> None:
        barrier.wait()
        try:
            work(index)  # type: ignore[operator]
            winners.append(index)
        except Conflict:
            pass
        except BaseException as error:
            others.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not others, others
    return winners


if REAL_S3:

    def test_many_objects_are_listed_in_pages() -> None:
        url = f"{REAL_S3}/{SystemEntropy().token(8).hex()}"
        store, meter = open_store(url, {"endpoint": REAL_ENDPOINT, "region": os.environ.get("AWS_REGION")})
        keys = [f"many/{number:04}" for number in range(2005)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert [info.key for info in store.list("many/")] == keys
        assert meter.requests["list"] == 3
        assert [info.key for info in store.list("many/1", after="many/1500")] == keys[1501:2000]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store.delete, keys))
