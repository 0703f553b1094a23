from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from synclib.errors import Missing
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore


def metered() -> tuple[MeteredStore, Meter]:
    meter = Meter()
    return MeteredStore(MemoryStore(), meter), meter


def test_requests_and_bytes_by_verb(tmp_path: Path) -> None:
    store, meter = metered()
    etag = store.put("a", b"12345")
    path = tmp_path / "body"
    path.write_bytes(bytes(100))
    store.put("b", path)
    store.put("c", memoryview(b"12345678").cast("I"))
    store.get("a", size_max=9)
    store.get("a", size_max=9, if_none_match=etag)
    store.get_ranges("b", [(0, 10), (20, 25)])
    store.get_suffix("b", 7)
    list(store.list(""))
    store.delete("a")
    with pytest.raises(Missing):
        store.get("a", size_max=9)
    assert meter.requests == {"get": 6, "put": 3, "list": 1, "delete": 1}
    assert (meter.bytes_up, meter.bytes_down) == (113, 5 + 15 + 7)
    assert meter.usd == pytest.approx(6 * 0.4e-6 + 4 * 5e-6)
    assert meter.as_dict()["usd"] == round(meter.usd, 9)


@pytest.mark.parametrize(("keys", "requests"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3)])
def test_a_listing_costs_a_request_a_page(keys: int, requests: int) -> None:
    store, meter = metered()
    for number in range(keys):
        store.store.put(str(number), b"")
    assert sum(1 for _ in store.list("")) == keys
    assert meter.requests["list"] == requests


def test_counts_of_workers_are_added_up() -> None:
    store, meter = metered()
    store.put("a", b"12345")
    parent = Meter()
    for _ in range(2):
        parent.add(pickle.loads(pickle.dumps(meter)))
    assert parent.requests["put"] == 2
    assert parent.bytes_up == 10
    parent.count("get")
    assert parent.requests["get"] == 1
