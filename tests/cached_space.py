"""A published address space and its cache, as processes read it: `python -m tests.cached_space VERB PLACE NUMBER`."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from synclib.clock import SystemClock
from synclib.core.entry import ADDRESS_UNIT, address_units
from synclib.core.eviction import NONE, Limits
from synclib.core.extent_map import Extent
from synclib.disk import blob_cache
from synclib.disk.blob_cache import BlobCache
from synclib.disk.evictor import Evictor, WantedStarts
from synclib.engine.cache_upkeep import CacheUpkeep
from synclib.engine.host import Connect
from synclib.engine.mount import Prepared, open_map, prepare
from synclib.lazy.blob import Blob
from synclib.lazy.maps import file_map
from synclib.lazy.mounted_seqs import MountedSeqs
from synclib.store.open import open_store
from tests.kit import Kit


def publish_space(place: Path, *, files: int = 400, large_bytes: int = 6_000_000) -> None:
    """A store, the map of its one dataset, and beside it all that the space must hold."""
    connect = Connect(f"file://{place}/store")
    (place / "store").mkdir()
    store, _ = open_store(connect.url, {})
    store.put("boxlink.json", b"{}")
    kit = Kit(place, store, connect=connect)
    chance = random.Random(1)
    content = {b"%03d" % number: chance.randbytes(chance.choice([100, 5000, 20_000])) for number in range(files)}
    content[b"large"] = chance.randbytes(large_bytes)
    kit.write(dict(content))
    kit.publish()
    prepared = prepare(kit.dataset, kit.host, kit.dataset.read_head().manifest)
    (place / "prepared").write_bytes(msgspec.json.encode(prepared))
    parts = [bytes(ADDRESS_UNIT)]
    parts += [data.ljust(address_units(len(data)) * ADDRESS_UNIT, b"\0") for _, data in sorted(content.items())]
    (place / "whole").write_bytes(b"".join(parts))


class CachedSpace:
    """One process's view of it. ``directory``: of the cache, by default the node's own."""

    def __init__(self, place: Path, limits: Limits | None = None, directory: Path | None = None) -> None:
        self.prepared = msgspec.json.decode((place / "prepared").read_bytes(), type=Prepared)
        self.whole = (place / "whole").read_bytes()
        self.directory = directory or Path(self.prepared.cache)
        self._stack = ExitStack()
        self.cache = BlobCache(self.directory, self.prepared.address_end, limits)
        self._stack.callback(self.cache.close)
        self.map = file_map(self._stack.enter_context(open(self.prepared.metadata.map, "rb")))  # noqa: SIM115
        self.store, _ = open_store(f"file://{place}/store", {})
        self.blob = Blob(self.store, self.prepared.root, self.map, self.cache, SystemClock())
        self._stack.callback(self.blob.close)

    def __enter__(self) -> CachedSpace:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def extents(self) -> list[Extent]:
        return self.map.overlapping(0, len(self.whole))

    def upkeep(self) -> CacheUpkeep:
        """It has not begun."""
        seqs = MountedSeqs(self.directory, lambda data: open_map(data, self.store))
        found = CacheUpkeep(self.cache, self.map, self.prepared.address_end, seqs, SystemClock(), _raise)
        self._stack.callback(found.end)
        return found

    def start_upkeep(self) -> CacheUpkeep:
        found = self.upkeep()
        found.start()
        return found

    def evictor(self, wanted: WantedStarts | None = None) -> Evictor:
        """One that takes all for wanted, or what is told."""
        return Evictor(
            self.cache, self.directory, lambda: ("", wanted or (lambda first, stop: set(range(first, stop))))
        )

    def right(self, extent: Extent) -> bytes:
        return self.whole[extent.position : extent.stop]

    def assert_all_right(self, step: int = 200_000) -> None:
        for start in range(0, len(self.whole), step):
            length = min(step, len(self.whole) - start)
            assert self.blob.read(start, length) == self.whole[start : start + length]


def _raise(error: Exception) -> None:
    raise error


def read_at_random(space: CachedSpace, seed: int, reads: int, threads: int = 4) -> None:
    """Some of it again and again, the rest now and then."""
    wrong: list[object] = []

    def read(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for _ in range(reads):
            reach = len(space.whole) if chance.random() < 0.5 else len(space.whole) // 6
            start = chance.randrange(reach)
            length = min(chance.choice([1000, 4096, 60_000, 131_072]), len(space.whole) - start)
            try:
                if space.blob.read(start, length) != space.whole[start : start + length]:
                    wrong.append((start, length))
            except Exception as error:
                wrong.append(error)

    _run(threads, read)
    assert wrong == []


def churn(space: CachedSpace, is_over: Callable[[], bool]) -> None:
    """Put all and have all evicted, again and again."""
    evictor = space.evictor()
    extents = space.extents()
    while not is_over():
        random.shuffle(extents)
        for extent in extents:
            space.cache.put([(extent, space.right(extent))])
        evictor.evict_to(random.randrange(len(space.whole)))


def die_taking_away(space: CachedSpace) -> None:
    """Killed where the bytes of one chunk go."""
    blob_cache.punch = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    extent = space.extents()[len(space.extents()) // 2]
    first, stop = extent.position // ADDRESS_UNIT, -(-extent.stop // ADDRESS_UNIT)
    with space.cache.record.locked():
        space.cache.record.set_states(first, bytes([NONE]))
        space.cache.take_away(first, stop)


def _run(count: int, target: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=target, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    verb, place, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if verb == "churn":
        with CachedSpace(place) as space:
            print("begun", flush=True)
            churn(space, lambda: False)
    if verb == "die":
        with CachedSpace(place) as space:
            die_taking_away(space)
    with CachedSpace(place, Limits(8 << 20)) as space:
        space.start_upkeep()
        read_at_random(space, number, reads=300)
        print(space.cache.counts.evicted_bytes, space.cache.counts.hits)


if __name__ == "__main__":
    main()
