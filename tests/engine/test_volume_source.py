"""A volume as the nearest place: what it has comes from there, whatever it does else the store answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from synclib.clock import ManualClock, SystemClock
from synclib.core.extent_map import Extent, encode_map
from synclib.core.manifest import Manifest
from synclib.disk.blob_cache import BlobCache
from synclib.errors import Unavailable
from synclib.lazy import volume_source
from synclib.lazy.blob import Blob
from synclib.lazy.chain import Chain
from synclib.lazy.extent_rows import ExtentRows
from synclib.lazy.maps import file_map
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.volume_source import VolumeSource
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit


class Shelf:
    """A dataset, its address space as a volume has it, and a blob that reads from both."""

    def __init__(self, place: Path) -> None:
        self.kit = Kit(place)
        self.kit.write({b"%02d" % n: bytes([n]) * (5000 * n + 1) for n in range(1, 30)})
        self.kit.publish()
        self.manifest: Manifest = self.kit.dataset.manifest_at(None)
        self.extents = self._extents()
        self.map = place / "map"
        self.map.write_bytes(b"".join(encode_map(self.extents)))
        self.space = bytearray(self.manifest.address_end * 4096)
        number = {extent.position: extent for extent in self.extents}
        for position, extent in number.items():
            self.space[position : extent.stop] = self.plain(extent)
        self.asked: list[tuple[int, int]] = []
        self.file = self.map.open("rb")

    def _extents(self) -> list[Extent]:
        chain = Chain.of(StoreRuns(self.kit.store), self.kit.dataset.root, self.manifest.runs)
        with ExtentRows() as rows:
            for _ in rows.noting(chain.entries()):
                pass
            return list(rows.sorted())

    def plain(self, extent: Extent) -> bytes:
        """By its length, which tells them apart."""
        number = (extent.chunk.plain_bytes - 1) // 5000
        return bytes([number]) * extent.chunk.plain_bytes

    def read(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        return bytes(self.space[offset : offset + length])

    def blob(self, source: VolumeSource, store: MemoryStore | None = None) -> Blob:
        cache = BlobCache(self.kit.place / "cache", self.manifest.address_end)
        return Blob(store or self.kit.store, self.kit.dataset.root, file_map(self.file), cache, SystemClock(), source)

    def source(self, read: volume_source.Read | None = None) -> VolumeSource:
        return VolumeSource(read or self.read, 0, file_map(self.file), SystemClock())

    def check(self, blob: Blob, extents: Sequence[Extent]) -> None:
        for extent in extents:
            assert blob.read(extent.position, extent.chunk.plain_bytes) == self.plain(extent)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_what_the_volume_has_is_not_asked_of_the_store(shelf: Shelf) -> None:
    blob = shelf.blob(shelf.source(), MemoryStore())  # an empty store
    shelf.check(blob, shelf.extents)
    assert blob.counts.near_chunks == len(shelf.extents)
    assert blob.counts.fetched_chunks == 0
    assert len(shelf.asked) < len(shelf.extents)  # neighbours come together
    blob.close()


def test_wrong_bytes_are_never_seen(shelf: Shelf) -> None:
    for extent in shelf.extents[::2]:
        shelf.space[extent.position] ^= 1
    blob = shelf.blob(shelf.source())
    shelf.check(blob, shelf.extents)
    assert blob.counts.near_chunks <= len(shelf.extents) // 2
    assert blob.counts.fetched_chunks >= len(shelf.extents) // 2
    blob.close()


@pytest.mark.parametrize("what", ["error", "short", "empty"])
def test_a_volume_that_fails_is_asked_no_more_after_some_time(shelf: Shelf, what: str) -> None:
    def read(offset: int, length: int) -> bytes:
        shelf.asked.append((offset, length))
        if what == "error":
            raise OSError(5, "it is gone")
        return b"" if what == "empty" else b"1"

    source = shelf.source(read)
    extent = shelf.extents[-1]
    for _ in range(40):
        assert source.read([extent], 10.0) == []
    assert source.is_off
    assert len(shelf.asked) == 16
    blob = shelf.blob(source)
    shelf.check(blob, shelf.extents)
    blob.close()


def test_a_volume_that_is_quick_again_is_taken_again(shelf: Shelf) -> None:
    """One read a minute tries it, and no other waits for it meanwhile."""
    clock = ManualClock()
    is_broken = True

    def read(offset: int, length: int) -> bytes:
        shelf.asked.append((offset, length))
        return b"" if is_broken else bytes(shelf.space[offset : offset + length])

    source = VolumeSource(read, 0, file_map(shelf.file), clock)
    extent = shelf.extents[-1]

    def reads(count: int) -> tuple[int, int]:
        """How many of these reads asked it, and how many got their bytes of it."""
        shelf.asked.clear()
        right = sum(len(source.read([extent], 10.0)) for _ in range(count))
        return len(shelf.asked), right

    assert reads(20) == (16, 0)
    clock.advance(59)
    assert reads(20) == (0, 0)
    clock.advance(1)
    assert reads(20) == (1, 0), "it is as it was"
    is_broken = False
    clock.advance(59)
    assert reads(20) == (0, 0)
    clock.advance(1)
    assert reads(20) == (20, 20)
    assert not source.is_off


def test_a_volume_that_stands_still_does_not_keep_its_readers(shelf: Shelf) -> None:
    go_on = threading.Event()

    def read(offset: int, length: int) -> bytes:
        shelf.asked.append((offset, length))
        go_on.wait()
        return b""

    source = shelf.source(read)
    blob = shelf.blob(source)
    try:
        shelf.check(blob, shelf.extents)
        assert blob.counts.near_chunks == 0
        assert shelf.asked
    finally:
        go_on.set()
        blob.close()


def test_what_the_store_cannot_give_a_slow_volume_still_does(shelf: Shelf) -> None:
    """It comes later than it is waited for at first, and had failed often enough before."""
    is_asked = threading.Event()

    def read(offset: int, length: int) -> bytes:
        shelf.asked.append((offset, length))
        is_asked.wait()
        return bytes(shelf.space[offset : offset + length])

    class Away(MemoryStore):
        def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
            is_asked.set()
            raise Unavailable("it is away")

    source = shelf.source(read)
    extent = shelf.extents[-1]
    for _ in range(20):
        assert source.read([extent], 0.0) == []
    assert source.is_off
    blob = shelf.blob(source, Away())
    shelf.check(blob, shelf.extents)
    assert blob.counts.errors == 0
    blob.close()


def test_what_the_volumes_own_map_does_not_have_is_not_read_there(shelf: Shelf, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.write_bytes(b"".join(encode_map(shelf.extents[::2])))
    with half.open("rb") as file:
        source = VolumeSource(shelf.read, 0, file_map(file), SystemClock())
        found = source.read(shelf.extents, 10.0)
    assert [extent for extent, _ in found] == shelf.extents[::2]
    assert all(bytes(plain) == shelf.plain(extent) for extent, plain in found)
