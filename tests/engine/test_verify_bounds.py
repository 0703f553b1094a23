"""What verifying and repacking ask and hold: it follows the packs, not how files are spread over them."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from synclib.clock import ulid_text
from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.names import pack_key
from synclib.core.pack import PackBuilder, PackInfo
from synclib.core.repacking import CHUNKS_MAX, PackUse, choose_packs
from synclib.disk import sorted_rows
from synclib.disk.sorted_rows import SortedRows
from synclib.engine.host import Connect
from synclib.engine.repack_job import RepackJob, _live_bytes, repack
from synclib.engine.verify_places import Places
from synclib.lazy.chain import Chain
from synclib.lazy.merge import Moves
from synclib.store.base import Buffer, Fetched
from synclib.store.memory import MemoryStore
from tests.kit import Kit, put


class Counting(MemoryStore):
    """Counts what is asked of packs, and the bytes of their data."""

    def __init__(self) -> None:
        super().__init__()
        self.put("boxlink.json", b"{}")
        self.tails: Counter[str] = Counter()

    def get_suffix(self, key: str, length: int) -> Fetched:
        self.tails[key] += "/pack/" in key
        return super().get_suffix(key, length)


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


def test_moves_say_where_each_chunk_is_now() -> None:
    random_ = random.Random(3)
    victims = [bytes([number]) * 16 for number in range(3)]
    chunks = [
        ChunkRef(number.to_bytes(32, "big"), victims[number % 3], 24 + number * 10, 10, 10, 0) for number in range(90)
    ]
    random_.shuffle(chunks)
    moves = Moves(frozenset(victims))
    expected: dict[ChunkRef, ChunkRef] = {}
    for number in range(4):
        new = PackInfo(bytes([100 + number]) * 16, 1000, 20, bytes(32))
        part = chunks[number * 20 : number * 20 + 20]
        placed = [msgspec.structs.replace(chunk, pack=new.ulid, offset=24 + at * 10) for at, chunk in enumerate(part)]
        moves.add(new, [(chunk.pack, chunk.offset) for chunk in part], placed)
        expected |= dict(zip(part, placed, strict=True))
    moves.seal()
    other = ChunkRef(bytes(32), b"o" * 16, 24, 10, 10, 0)
    # Those that were not moved stay, and what is in no victim.
    entry = Entry(b"", b"a", Kind.FILE, chunks=(*chunks, other))
    assert moves.moved(entry).chunks == (*(expected.get(chunk, chunk) for chunk in chunks), other)
    untouched = Entry(b"", b"b", Kind.FILE, chunks=(other,))
    assert moves.moved(untouched) is untouched


def test_what_lies_between_is_let_go_range_by_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the live chunks no more than one range is held, however sparse the packs are."""
    monkeypatch.setattr("synclib.core.plan.RANGE_BYTES_MAX", 1 << 20)
    store = Counting()
    random_ = random.Random(5)
    live: list[ChunkRef] = []
    for number in range(10):
        builder = PackBuilder(bytes([number]) * 16)
        for at in range(80):
            plain = random_.randbytes(50_000)
            chunk = builder.add(blake3(plain).digest(), plain, plain, Codec.RAW)
            if at % 2:
                live.append(chunk)
        store.put(pack_key("data/covers", ulid_text(bytes([number]) * 16)), builder.finish()[0])
    small = [chunk for chunk in live if chunk.offset % 3 == 0]
    held = 0

    def watched(key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        nonlocal held
        held = max(held, sum(stop - start for start, stop in ranges))
        return MemoryStore.get_ranges(store, key, ranges)

    monkeypatch.setattr(store, "get_ranges", watched)
    found = _live_bytes(RepackJob(Connect("memory://"), "data/covers", b"n" * 16, small), store)
    assert held <= 1 << 20
    assert sum(map(len, found.values())) == 50_000 * len(small)
    done = repack(RepackJob(Connect("memory://"), "data/covers", b"n" * 16, small), store)
    assert done.places == [(chunk.pack, chunk.offset) for chunk in small]
    assert [chunk.hash for chunk in done.chunks] == [chunk.hash for chunk in small]


def test_what_is_remembered_bounds_what_is_moved() -> None:
    uses = [PackUse(bytes([number]), 1000, 100, CHUNKS_MAX // 2) for number in range(4)]
    assert choose_packs(uses, 1 << 30) == uses[:1]
    assert choose_packs([PackUse(b"%d" % n, 1000, 100, CHUNKS_MAX // 4) for n in range(4)], 1 << 30) == [
        PackUse(b"%d" % n, 1000, 100, CHUNKS_MAX // 4) for n in range(2)
    ]
    assert choose_packs([PackUse(b"one", 1000, 100, 2 * CHUNKS_MAX)], 1 << 30) != []
