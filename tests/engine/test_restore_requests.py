"""What a restore of a part, of nothing, and of all asks of a store: requests are counted, and bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.pack import PACK_BYTES_TARGET
from synclib.core.plan import Piece, plan_window
from synclib.lazy.open import open_view
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from tests.kit import Content, Kit

FOLDERS: Content = {b"%02d" % folder: None for folder in range(5)}
FILES = {b"%02d/%03d" % (folder, number): b"%d" % number * 20 for folder in range(5) for number in range(30)}


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """A chain of a snap and two diffs."""
    store = MemoryStore()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path / "publisher", store)
    kit.write({**FOLDERS, **FILES})
    kit.publish()
    for number in range(2):
        kit.write({**FOLDERS, **FILES, b"01/%03d" % number: b"new", b"02/new": b"new"})
        kit.publish()
    return store


def comer(store: MemoryStore, place: Path) -> tuple[Kit, Meter]:
    """A machine that has nothing yet."""
    meter = Meter()
    return Kit(place, MeteredStore(store, meter), seed=2), meter


def test_a_folder_and_a_file_cost_few_requests(store: MemoryStore, tmp_path: Path) -> None:
    for path, files in ((b"01", 30), (b"01/010", 1)):
        kit, meter = comer(store, tmp_path / f"of-{files}")
        assert kit.restore(kit.place / "out", path=path).fetched_files == files
        # Head, three runs, two packs that the files are in; a pin is taken (head, pin, head) and given back.
        assert meter.requests["get"] <= 1 + 3 + 2 + 2
        assert (meter.requests["put"], meter.requests["delete"], meter.requests["list"]) == (1, 1, 0)
        assert sum(meter.requests.values()) <= 10


def test_all_of_it_costs_a_request_a_run_and_two_a_pack(store: MemoryStore, tmp_path: Path) -> None:
    kit, meter = comer(store, tmp_path / "all")
    done = kit.restore(kit.place / "out")
    packs = len(list(store.list("data/covers/pack/")))
    assert done.fetch_requests <= 2 * packs
    assert meter.requests["get"] <= 1 + 3 + 2 + 2 * packs
    before = meter.requests["get"]
    assert kit.restore(kit.place / "out").fetch_requests == 0
    assert meter.requests["get"] == before + 1
    assert meter.requests["put"] == meter.requests["delete"] == 1


def test_one_file_is_read_for_few_bytes(store: MemoryStore, tmp_path: Path) -> None:
    """How many of these requests wait for others is in test_lazy_reads."""
    kit, meter = comer(store, tmp_path / "reader")
    view = open_view(kit.dataset)
    assert view.open(b"03/010").pread(0, 1 << 20) == FILES[b"03/010"]
    # A head, the tails of the three runs, a block of names and one of hashes, the bytes.
    assert meter.requests["get"] <= 1 + 3 + 2 + 1
    assert meter.bytes_down < 200_000


def test_a_full_pack_is_two_ranges() -> None:
    """A pack is full when it has 32 MiB: what is over that makes no third request."""
    size = 20_000
    refs = [
        ChunkRef(bytes(32), bytes(16), 32 + number * size, size, size, Codec.RAW)
        for number in range(PACK_BYTES_TARGET // size + 1)
    ]
    pieces = [
        Piece(Entry(b"", b"%06d" % number, Kind.FILE, 0o644, 1, size, (ref,)), (ref,), 0, is_whole=True)
        for number, ref in enumerate(refs)
    ]
    assert sum(plan.range_count for plan in plan_window(pieces)) == 2
