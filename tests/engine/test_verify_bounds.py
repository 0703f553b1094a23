"""What verifying and repacking ask and hold: it follows the packs, not how files are spread over them."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.disk import sorted_rows
from synclib.disk.sorted_rows import SortedRows
from synclib.engine.verify_places import Places
from synclib.lazy.chain import Chain
from synclib.store.base import Buffer, Fetched
from synclib.store.memory import MemoryStore
from tests.kit import Kit, put


class Counting(MemoryStore):
    """Counts what is asked of packs, and the bytes of their data."""

    def __init__(self) -> None:
        super().__init__()
        self.put("boxlink.json", b"{}")
        self.tails: Counter[str] = Counter()
        self.largest = 0

    def get_suffix(self, key: str, length: int) -> Fetched:
        self.tails[key] += "/pack/" in key
        return super().get_suffix(key, length)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.largest = max(self.largest, sum(stop - start for start, stop in ranges))
        return super().get_ranges(key, ranges)


PACKS = 45


@pytest.fixture
def scattered(tmp_path: Path) -> Kit:
    """Files in the order of whose paths each is in another pack than the one before."""
    kit = Kit(tmp_path, Counting())
    for number in range(PACKS):
        for part in range(12):
            put(kit.directory, b"%02d/%02d" % (part, number), random.Random(number * 100 + part).randbytes(50))
        kit.publish()
    return kit


def test_each_slot_table_is_read_for_itself_and_for_all_entries(scattered: Kit) -> None:
    store = scattered.store
    assert isinstance(store, Counting)
    found = scattered.verify()
    assert (found.damage, found.packs) == ([], PACKS)
    assert set(store.tails.values()) == {2, 0} or set(store.tails.values()) == {2}
    assert sum(store.tails.values()) == 2 * PACKS


def test_a_chunk_that_is_no_slot_is_told_with_its_path(scattered: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Chain.entries

    def forged(self: Chain, *args: object, **options: object) -> Iterator[Entry]:
        for entry in real(self, *args, **options):  # type: ignore[arg-type]
            if entry.path == b"07/31":
                chunk = msgspec.structs.replace(entry.chunks[0], offset=entry.chunks[0].offset + 1)
                yield msgspec.structs.replace(entry, chunks=(chunk,))
            else:
                yield entry

    monkeypatch.setattr(Chain, "entries", forged)
    ((key, message),) = scattered.verify().damage
    assert "/pack/" in key
    assert message == "07/31 names a chunk that its pack does not have"


@given(st.lists(st.binary(min_size=3, max_size=3)), st.integers(1, 5))
def test_rows_come_in_order(rows: list[bytes], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch, SortedRows(3) as taken:
        patch.setattr(sorted_rows, "_SORTED_ROWS", at_once)
        patch.setattr(sorted_rows, "_READ_ROWS", 2)
        for row in rows:
            taken.add(row)
        assert list(taken.sorted()) == sorted(rows)


def refs(count: int) -> Iterator[ChunkRef]:
    for number in range(count):
        yield ChunkRef(number.to_bytes(32, "big"), b"p" * 16, 24 + number * 10, 10, 10, 0)


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_what_is_no_slot_is_found(named: set[int], there: set[int]) -> None:
    chunks = list(refs(31))
    places = Places()
    for number in named:
        places.note(Entry(b"", b"%d" % number, Kind.FILE, chunks=(chunks[number],)))
    wrong = places.wrong(lambda ulid: iter([chunks[number] for number in sorted(there)]))
    assert list(wrong) == [chunks[number] for number in sorted(named - there)]
    places.close()


def peak_bytes(what: Iterable[object]) -> int:
    tracemalloc.start()
    for _ in what:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_slots_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60,000 chunks of one pack a few hundred are in memory: as objects they would be 12 MB and more."""
    monkeypatch.setattr(sorted_rows, "_SORTED_ROWS", 1000)
    monkeypatch.setattr(sorted_rows, "_READ_ROWS", 16)
    places = Places()

    def all_of_it() -> Iterator[object]:
        for chunk in refs(60_000):
            places.note(Entry(b"", b"", Kind.FILE, chunks=(chunk,)))
        yield from places.wrong(lambda ulid: refs(60_000))

    assert peak_bytes(all_of_it()) < 2 << 20
    places.close()
