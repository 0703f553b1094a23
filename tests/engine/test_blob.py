"""The address space, read lazily: one fetch however many readers, right bytes or an error, readers that may give up."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from synclib.clock import SystemClock
from synclib.core.entry import address_units
from synclib.disk.blob_cache import BlobCache
from synclib.engine.mount import Prepared, prepare
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.lazy import blob as blob_module
from synclib.lazy.blob import Blob
from synclib.lazy.maps import file_map
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit

PACK = "/pack/"


class Trouble(MemoryStore):
    """Counts reads of packs; they wait for ``gate``, and may be flipped ``lies`` times."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.lies = 0
        self.reads: list[Sequence[tuple[int, int]]] = []

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        found = super().get_ranges(key, ranges)
        if PACK not in key:
            return found
        self.reads.append(ranges)
        self.gate.wait(30)
        if self.lies:
            self.lies -= 1
            return [bytes(piece[:-1]) + bytes([piece[-1] ^ 1]) for piece in map(bytes, found)]
        return found


class Space:
    def __init__(self, place: Path) -> None:
        self.store = Trouble()
        self.store.put("boxlink.json", b"{}")
        self.kit = Kit(place, self.store)
        chance = random.Random(1)
        self.files = {b"%02d" % number: chance.randbytes(20_000) for number in range(40)}
        self.files[b"large"] = chance.randbytes(3_000_000)
        self.kit.write(dict(self.files))
        self.kit.publish()
        self.prepared: Prepared = prepare(self.kit.dataset, self.kit.host, self.kit.dataset.read_head().manifest)
        self.file = open(self.prepared.metadata.map, "rb")  # noqa: SIM115 - closed by close()
        self.blobs: list[Blob] = []

    def blob(self) -> Blob:
        cache = BlobCache(Path(self.prepared.cache), self.prepared.address_end)
        extents = file_map(self.file)
        self.blobs.append(Blob(self.store, self.prepared.root, extents, cache, SystemClock()))
        return self.blobs[-1]

    def all(self) -> bytes:
        """What the whole space must hold: files in their order, each padded to a unit, after the first unit."""
        parts = [bytes(4096)]
        for path in sorted(self.files):
            content = self.files[path]
            parts.append(content.ljust(address_units(len(content)) * 4096, b"\0"))
        return b"".join(parts)

    def close(self) -> None:
        self.store.gate.set()
        for blob in self.blobs:
            blob.close()
        self.file.close()


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    found = Space(tmp_path)
    yield found
    found.close()


def test_any_range_is_what_it_must_be(space: Space) -> None:
    blob, whole, chance = space.blob(), space.all(), random.Random(2)
    for _ in range(200):
        start = chance.randrange(len(whole))
        length = chance.randrange(1, 300_000)
        assert blob.read(start, length) == whole[start : start + length]
    assert blob.read(0, len(whole)) == whole
    # In another life of the process nothing is fetched again.
    reads = len(space.store.reads)
    assert space.blob().read(0, len(whole)) == whole
    assert len(space.store.reads) == reads


def test_readers_of_one_place_make_one_fetch(space: Space) -> None:
    blob, whole = space.blob(), space.all()
    space.store.gate.clear()
    answers: list[bytes] = []
    readers = [threading.Thread(target=lambda: answers.append(blob.read(4096, 20_000))) for _ in range(20)]
    for reader in readers:
        reader.start()
    while not space.store.reads:
        time.sleep(0.001)
    space.store.gate.set()
    for reader in readers:
        reader.join()
    assert answers == [whole[4096:24_096]] * 20
    assert len(space.store.reads) == 1


def test_neighbours_come_with_a_fault(space: Space) -> None:
    blob = space.blob()
    blob.read(4096, 4096)
    count = len(space.store.reads)
    blob.read(4096 + 20_480, 4096)
    assert len(space.store.reads) == count == 1


def test_a_reader_gives_up_and_the_next_one_has_what_came(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_module, "DEADLINE_S", 0.05)
    blob, whole = space.blob(), space.all()
    space.store.gate.clear()
    for _ in range(3):
        with pytest.raises(Unavailable, match="in time"):
            blob.read(4096, 100)
    assert len(space.store.reads) == 1
    space.store.gate.set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert blob.read(4096, 100) == whole[4096:4196]
            break
        except Unavailable:
            continue
    assert len(space.store.reads) == 1


def test_bytes_that_were_changed_on_their_way_are_asked_for_again(space: Space) -> None:
    space.store.lies = 1
    assert space.blob().read(4096, 100) == space.all()[4096:4196]
    assert len(space.store.reads) == 2


def test_bytes_that_stay_wrong_are_an_error_and_are_not_kept(space: Space) -> None:
    """The last byte of what comes is wrong: so is the last file of a range, and it alone."""
    blob, whole = space.blob(), space.all()
    space.store.lies = 1000
    last = len(whole) - 4096
    for _ in range(2):
        with pytest.raises(Corrupt):
            blob.read(last, 100)
    assert blob.read(4096, 100) == whole[4096:4196]
    space.store.lies = 0
    assert blob.read(last, 100) == whole[last : last + 100]


def test_a_pack_that_is_gone_is_an_error_for_what_was_in_it_and_not_here(space: Space) -> None:
    blob, whole = space.blob(), space.all()
    assert blob.read(4096, 100) == whole[4096:4196]
    for info in list(space.store.list("data/covers/pack/")):
        space.store.delete(info.key)
    assert blob.read(4096, 100) == whole[4096:4196]
    with pytest.raises(Missing):
        blob.read(len(whole) - 4096, 100)
    assert blob.counts.errors == 1
