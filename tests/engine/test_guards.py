"""What keeps wrong bytes and hangs from readers, each shown to matter: with it removed, the same check fails."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import is_held
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_record import CacheRecord
from synclib.errors import Corrupt, Unavailable
from synclib.lazy import blob as blob_module
from synclib.lazy.blob import Blob
from synclib.store.base import Buffer, Store
from tests.cached_space import CachedSpace, publish_space

BOTH = pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "guard removed"])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("space")
    publish_space(place, files=60, large_bytes=1_500_000)
    return place


@pytest.fixture
def space(published: Path, tmp_path: Path) -> Iterator[CachedSpace]:
    with CachedSpace(published, directory=tmp_path / "cache") as found:
        yield found


class Answering:
    """A store that answers ranges as it is told to."""

    def __init__(self, store: Store, answer: Callable[[list[Buffer]], list[Buffer]]) -> None:
        self.url, self._store, self._answer = store.url, store, answer

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self._answer(self._store.get_ranges(key, ranges))


def _blob(space: CachedSpace, answer: Callable[[list[Buffer]], list[Buffer]]) -> Blob:
    store: Store = Answering(space.store, answer)  # type: ignore[assignment]
    return Blob(store, space.prepared.root, space.map, space.cache, SystemClock())


def _flipped(parts: list[Buffer]) -> list[Buffer]:
    found = []
    for part in parts:
        data = bytearray(part)
        data[len(data) // 2] ^= 1
        found.append(bytes(data))
    return found


def _wrong_reads(space: CachedSpace, blob: Blob) -> int:
    """How many extents are handed out with other bytes; an error is right."""
    wrong = 0
    for extent in space.extents():
        try:
            wrong += blob.read(extent.position, extent.chunk.plain_bytes) != space.right(extent)
        except Corrupt:
            continue
    return wrong


@BOTH
def test_verified_before_it_is_answered(space: CachedSpace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool) -> None:
    if not is_guarded:
        monkeypatch.setattr(blob_module, "decode_chunk", lambda chunk, stored: bytes(stored))
    blob = _blob(space, _flipped)
    try:
        assert (_wrong_reads(space, blob) == 0) == is_guarded
    finally:
        blob.close()


@BOTH
def test_hashed_before_the_record_is_believed(
    space: CachedSpace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    """The record says that all is held, and nothing is: a power cut may leave it so."""
    record = space.cache.record
    for extent in space.extents():
        record.set_states(extent.position // ADDRESS_UNIT, b"\xff")
    assert all(is_held(record.state(extent.position // ADDRESS_UNIT)) for extent in space.extents())
    if not is_guarded:
        monkeypatch.setattr(BlobCache, "_has_hash", lambda cache, extent, generation: True)
    assert (_wrong_reads(space, space.blob) == 0) == is_guarded


@BOTH
def test_what_goes_while_it_is_read_is_not_handed_out(
    space: CachedSpace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    """Another one evicts between the look at the record and the read."""
    extent = space.extents()[5]
    space.blob.read(extent.position, extent.chunk.plain_bytes)
    if not is_guarded:
        monkeypatch.setattr(CacheRecord, "generation", lambda record, region: 0)
    pread, evictor = os.pread, space.evictor()
    has_gone = False

    def late(descriptor: int, length: int, at: int) -> bytes:
        nonlocal has_gone
        if not has_gone and at == extent.position:
            has_gone = True
            evictor.evict_to(0)
        return pread(descriptor, length, at)

    monkeypatch.setattr(os, "pread", late)
    found = space.cache.read(extent.position, extent.chunk.plain_bytes, [extent])
    assert has_gone
    assert found is None if is_guarded else found == bytes(extent.chunk.plain_bytes)


@BOTH
def test_forgotten_durably_before_bytes_go(
    space: CachedSpace, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_guarded: bool
) -> None:
    """The power goes when some bytes have been taken away: of the record only what was made durable is left."""
    space.assert_all_right()
    space.cache.sync()
    durable = (space.directory / "held").read_bytes()
    sync, take_away = space.cache.record.sync_states, BlobCache.take_away
    copy = tmp_path / "after"

    def synced() -> None:
        nonlocal durable
        if is_guarded:
            sync()
            durable = (space.directory / "held").read_bytes()

    def watched(cache: BlobCache, first: int, stop: int) -> None:
        take_away(cache, first, stop)
        copy.mkdir(exist_ok=True)
        shutil.copyfile(space.directory / "blob", copy / "blob")
        (copy / "held").write_bytes(durable)

    monkeypatch.setattr(space.cache.record, "sync_states", synced)
    monkeypatch.setattr(BlobCache, "take_away", watched)
    space.evictor().evict_to(len(space.whole) // 2)
    monkeypatch.undo()
    with CachedSpace(published, directory=copy) as after:
        after.assert_all_right()  # whatever the record says: that is another guard's work
        assert (after.cache.counts.damaged == 0) == is_guarded


@BOTH
def test_a_reader_does_not_wait_for_ever(space: CachedSpace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool) -> None:
    monkeypatch.setattr(blob_module, "DEADLINE_S", 0.2 if is_guarded else 1e6)
    comes = threading.Event()

    def stalled(parts: list[Buffer]) -> list[Buffer]:
        comes.wait()
        return parts

    blob = _blob(space, stalled)
    extent = space.extents()[0]
    told: list[object] = []

    def read() -> None:
        try:
            told.append(blob.read(extent.position, 100))
        except Unavailable as error:
            told.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        reader.join(20 if is_guarded else 1)
        assert reader.is_alive() != is_guarded
        assert all(isinstance(word, Unavailable) for word in told)
    finally:
        comes.set()
        reader.join()
        blob.close()
    assert len(told) == 1


@BOTH
def test_an_error_is_waited_for_once(space: CachedSpace, monkeypatch: pytest.MonkeyPatch, is_guarded: bool) -> None:
    """The kernel asks for the same pages one by one when the first answer is an error; the clock goes as one asks."""

    class Clock(SystemClock):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, asked = Clock(), 0

    def away(parts: list[Buffer]) -> list[Buffer]:
        nonlocal asked
        asked += 1
        clock.now += 2
        raise Unavailable("away")

    if not is_guarded:
        monkeypatch.setattr(blob_module.Failures, "check", lambda failures, positions, now: None)
    store: Store = Answering(space.store, away)  # type: ignore[assignment]
    blob = Blob(store, space.prepared.root, space.map, space.cache, clock)
    extent = max(space.extents(), key=lambda extent: extent.chunk.plain_bytes)
    try:
        for at in range(0, 40_960, 4096):
            with pytest.raises(Unavailable):
                blob.read(extent.position + at, 4096)
            clock.now += 0.01
        assert (asked == 1) == is_guarded
        clock.now += 60
        with pytest.raises(Unavailable):
            blob.read(extent.position, 4096)
        assert asked > 1
    finally:
        blob.close()
