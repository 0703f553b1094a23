"""The address space of a dataset, read lazily: what is not in the cache is fetched, verified, kept, then handed out."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from synclib.clock import Clock, ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.extent_map import Extent, MapTail, Page, PageInfo, decode_page
from synclib.core.pack import decode_chunk
from synclib.core.plan import coalesce_chunks
from synclib.disk.blob_cache import BlobCache
from synclib.errors import BoxlinkError, Corrupt, Unavailable
from synclib.store.base import Buffer, Store

# What is fetched at least around a fault, where it lies in the same pack: a request costs as much for 20 KB.
WINDOW_BYTES = 128 << 10
# How long a reader waits for bytes; then it gets an error, while what was begun goes on for the next one.
DEADLINE_S = 60.0
FETCHES_AT_ONCE = 64
_TRIES = 2  # of a fetch whose bytes were wrong
_FAULTS_KEPT = 1000
_PAGES_KEPT = 256  # 16 MiB of pages, some 60 MB of numbers

ReadRange = Callable[[int, int], Buffer]  # (start, stop) of a map object


class MapReader:
    """A map of which the tail is in memory, and the pages used last. Safe between threads."""

    def __init__(self, tail: MapTail, read: ReadRange) -> None:
        self._infos, self._read = tail.pages, read
        self._firsts = [info.first for info in tail.pages]
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._lock = threading.Lock()

    def overlapping(self, start: int, stop: int) -> list[Extent]:
        """The extents that have a byte in [start, stop), by position."""
        found: list[Extent] = []
        index = max(bisect.bisect_right(self._firsts, start) - 1, 0)
        while index < len(self._infos) and self._infos[index].first < stop:
            if self._infos[index].stop > start:
                found += self._page(index).overlapping(start, stop)
            index += 1
        return found

    def _page(self, index: int) -> Page:
        with self._lock:
            page = self._pages.get(index)
            if page is not None:
                self._pages.move_to_end(index)
                return page
        page = self._decoded(self._infos[index])
        with self._lock:
            self._pages[index] = page
            while len(self._pages) > _PAGES_KEPT:
                self._pages.popitem(last=False)
        return page

    def _decoded(self, info: PageInfo) -> Page:
        return decode_page(info, self._read(info.offset, info.offset + info.stored_bytes))


@dataclass
class BlobCounts:
    """What a blob has done since it was opened."""

    reads: int = 0
    faults: int = 0  # reads that had to wait for the store
    fetched_chunks: int = 0
    fetched_bytes: int = 0
    errors: int = 0
    # Of the latest faults, how long each took.
    fault_s: deque[float] = field(default_factory=lambda: deque(maxlen=_FAULTS_KEPT))


@dataclass
class _Flight:
    """An extent that one thread fetches, and others wait for."""

    landed: threading.Event = field(default_factory=threading.Event)
    error: BoxlinkError | None = None
    plain: bytes | memoryview | None = None  # its bytes, where this flight has brought them


class Blob:
    """Bytes at positions of one dataset's address space, right or an error. Safe between threads.

    What is fetched is fetched by threads of its own: a reader may give up, a fetch ends when the store's deadlines say.
    """

    def __init__(self, store: Store, root: str, extents: MapReader, cache: BlobCache, clock: Clock) -> None:
        self._store, self._root, self._map, self._cache, self._clock = store, root, extents, cache, clock
        self._flights: dict[int, _Flight] = {}
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch")
        self.counts = BlobCounts()

    def close(self) -> None:
        """What is under way is waited for."""
        self._fetchers.shutdown(cancel_futures=True)

    def read(self, start: int, length: int) -> bytes:
        """The bytes at [start, start + length); where no file of the map is, zeros. Any BoxlinkError of the store."""
        self.counts.reads += 1
        extents = self._map.overlapping(start, start + length)
        data = self._cache.read(start, length, extents)
        if data is not None:
            return data
        self.counts.faults += 1
        started = self._clock.monotonic()
        try:
            return self._read_lacking(start, length, extents)
        except BoxlinkError:
            self.counts.errors += 1
            raise
        finally:
            self.counts.fault_s.append(self._clock.monotonic() - started)

    def _read_lacking(self, start: int, length: int, extents: list[Extent]) -> bytes:
        """What is fetched is handed out from memory: the cache may have no room for it, or have let it go again."""
        deadline = self._clock.monotonic() + DEADLINE_S
        data = bytearray(length)
        left = extents
        while left:
            lacking: list[Extent] = []
            for extent in left:
                low, high = max(extent.position, start), min(extent.stop, start + length)
                piece = self._cache.read(low, high - low, [extent])
                if piece is None:
                    lacking.append(extent)
                else:
                    data[low - start : high - start] = piece
            fetched = self._make_resident(lacking, deadline) if lacking else {}
            for extent in lacking:
                plain = fetched.get(extent.position)
                if plain is not None:
                    low, high = max(extent.position, start), min(extent.stop, start + length)
                    data[low - start : high - start] = plain[low - extent.position : high - extent.position]
            left = [extent for extent in lacking if extent.position not in fetched]
            if left and self._clock.monotonic() > deadline:
                raise Unavailable("the store did not answer in time", key=self._key(left[0].chunk))
        return bytes(data)

    def _neighbours(self, wanted: list[Extent]) -> list[Extent]:
        """What lies around these in the same packs and is not here either."""
        packs = {extent.chunk.pack for extent in wanted}
        positions = {extent.position for extent in wanted}
        start = wanted[0].position // WINDOW_BYTES * WINDOW_BYTES
        stop = -(-wanted[-1].stop // WINDOW_BYTES) * WINDOW_BYTES
        return [
            extent
            for extent in self._map.overlapping(start, stop)
            if extent.position not in positions and extent.chunk.pack in packs and not self._cache.has(extent)
        ]

    def _make_resident(self, wanted: list[Extent], deadline: float) -> dict[int, bytes | memoryview]:
        """Have fetched what nobody is fetching, with its neighbours, and wait for what is wanted. The bytes of what was
        fetched, by position; the rest another one has put into the cache."""
        own: list[Extent] = []
        neighbours = self._neighbours(wanted)
        with self._lock:
            for extent in (*wanted, *neighbours):
                if extent.position not in self._flights:
                    self._flights[extent.position] = _Flight()
                    own.append(extent)
            flights = [(extent, self._flights[extent.position]) for extent in wanted]
        if own:
            self._fetchers.submit(self._fetch_own, own)
        for extent, flight in flights:
            if not flight.landed.wait(max(deadline - self._clock.monotonic(), 0)):
                raise Unavailable("the store did not answer in time", key=self._key(extent.chunk))
            if flight.error is not None:
                raise flight.error
        return {extent.position: flight.plain for extent, flight in flights if flight.plain is not None}

    def _fetch_own(self, extents: list[Extent]) -> None:
        """Fetch, and tell those who wait how it went, for each extent by itself."""
        errors: dict[int, BoxlinkError] = dict.fromkeys(
            (extent.position for extent in extents), Unavailable("a fetch ended early")
        )
        try:
            # What another thread has brought since this one looked is not fetched again.
            lacking = [extent for extent in extents if not self._cache.has(extent)]
            for _ in range(_TRIES):
                errors = self._fetch(lacking)
                # Bits that flipped on their way; what lies damaged in the store stays damaged.
                lacking = [extent for extent in lacking if isinstance(errors.get(extent.position), Corrupt)]
                if not lacking:
                    break
        finally:
            with self._lock:
                for extent in extents:
                    flight = self._flights.pop(extent.position)
                    flight.error = errors.get(extent.position)
                    flight.landed.set()

    def _fetch(self, extents: Sequence[Extent]) -> dict[int, BoxlinkError]:
        """Bring extents into the cache: ranges of packs, each chunk verified before it is written. What failed, by
        position."""
        errors: dict[int, BoxlinkError] = {}
        by_pack = coalesce_chunks(extent.chunk for extent in extents)
        for pack, ranges in by_pack.items():
            here = [extent for extent in extents if extent.chunk.pack == pack]
            key = names.pack_key(self._root, ulid_text(pack))
            try:
                answers = self._store.get_ranges(key, ranges)
            except BoxlinkError as error:
                errors.update((extent.position, error) for extent in here)
                continue
            found: list[tuple[Extent, bytes | memoryview]] = []
            for extent in here:
                try:
                    found.append((extent, _decode(extent.chunk, ranges, answers)))
                except Corrupt as error:
                    error.key = key
                    errors[extent.position] = error
            self._keep(found)
        return errors

    def _keep(self, found: list[tuple[Extent, bytes | memoryview]]) -> None:
        self._cache.put(found)
        for extent, plain in found:
            self._flights[extent.position].plain = plain
            self.counts.fetched_chunks += 1
            self.counts.fetched_bytes += extent.chunk.stored_bytes

    def _key(self, chunk: ChunkRef) -> str:
        return names.pack_key(self._root, ulid_text(chunk.pack))


def _decode(chunk: ChunkRef, ranges: list[tuple[int, int]], answers: list[Buffer]) -> bytes | memoryview:
    """A chunk, verified, out of the ranges of its pack."""
    index = bisect.bisect_right(ranges, (chunk.offset, 1 << 62)) - 1
    at = chunk.offset - ranges[index][0]
    return decode_chunk(chunk, memoryview(answers[index])[at : at + chunk.stored_bytes])
