"""The address space of a dataset, read lazily: what is not in the cache is fetched, verified, kept, then handed out."""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from synclib.clock import Clock, ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.extent_map import Extent, MapTail, Page, PageInfo, decode_page
from synclib.core.pack import decode_chunk
from synclib.core.plan import coalesce_chunks
from synclib.disk.blob_cache import BlobCache, Piece
from synclib.errors import BoxlinkError, Corrupt, Full, Unavailable
from synclib.lazy.failures import Failures
from synclib.lazy.not_here import NotHereError, before_waiting
from synclib.store.base import Buffer, Store

# What is fetched at least around a fault, where it lies in the same pack: a request costs as much for 20 KB.
WINDOW_BYTES = 128 << 10
# How long a reader waits for bytes; then it gets an error, while what was begun goes on for the next one.
DEADLINE_S = 60.0
FETCHES_AT_ONCE = 64  # for readers; what is fetched in the background has threads of its own
# How long a reader waits for what is fetched in the background, a few MiB perhaps, before it asks for its own part: as
# long as that part would have taken, so that it waits twice as long at most.
PATIENCE_S = 0.1
_USUAL_OF = 16  # fetches
# How long a nearer place is waited for before the store is asked: by a reader as long as two fetches usually take, so
# that whichever of both is quicker is found by trying; in the background longer.
_NEAR_OF, _NEAR_S = 2.0, 2.0
_KEEPERS = 1  # threads that verify and write what came in the background
_TRIES = 2  # of a fetch whose bytes were wrong
_FAULTS_KEPT = 1000
_PAGES_KEPT = 256  # 16 MiB of pages, some 60 MB of numbers

ReadRange = Callable[[int, int], Buffer]  # (start, stop) of a map object


class Extents(Protocol):
    """What lies where. Safe between threads."""

    def overlapping(self, start: int, stop: int) -> list[Extent]:
        """The extents that have a byte in [start, stop), by position."""

    def walk(self) -> Iterator[list[Extent]]:
        """All extents, some at a time."""


class Near(Protocol):
    """A place nearer than the store that may have bytes of a dataset, such as a volume of an older seq."""

    def read(self, extents: Sequence[Extent], patience_s: float | None) -> list[Piece]:
        """What it has of these and gives within that time, each hashed; never an error. Safe between threads.

        None: nobody else has them, so that it is asked, and waited for, as long as there is any hope."""


class MapReader:
    """A map of which the tail is in memory, and the pages used last. Safe between threads."""

    def __init__(self, tail: MapTail, read: ReadRange) -> None:
        self._infos, self._read = tail.pages, read
        self._firsts = [info.first for info in tail.pages]
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._coming: dict[int, Future[Page]] = {}  # pages that one thread reads, and others wait for
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

    def walk(self) -> Iterator[list[Extent]]:
        """All extents by position, a page at a time; the pages that readers use stay in memory."""
        for info in self._infos:
            page = self._decoded(info)
            yield [page.extent(index) for index in range(len(page))]

    def _page(self, index: int) -> Page:
        while True:
            with self._lock:
                page = self._pages.get(index)
                if page is not None:
                    self._pages.move_to_end(index)
                    return page
                coming = self._coming.get(index)
                if coming is None:
                    own = self._coming[index] = Future()
            if coming is None:
                return self._read_page(index, own)
            before_waiting()
            with contextlib.suppress(NotHereError):  # of a thread that may not wait: then it is for this one
                return coming.result()

    def _read_page(self, index: int, coming: Future[Page]) -> Page:
        try:
            page = self._decoded(self._infos[index])
        except BaseException as error:
            coming.set_exception(error)
            raise
        else:
            coming.set_result(page)
        finally:
            with self._lock:
                del self._coming[index]
                if coming.exception() is None:
                    self._pages[index] = coming.result()
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
    near_chunks: int = 0  # that came from a nearer place than the store
    near_bytes: int = 0
    errors: int = 0
    # Of the latest faults, how long each took.
    fault_s: deque[float] = field(default_factory=lambda: deque(maxlen=_FAULTS_KEPT))


@dataclass
class _Flight:
    """Extents that one thread fetches, and others wait for. ``is_background``: it may take long, and may fail where a
    reader would try again. ``errors``: what failed, by position, once it has landed."""

    is_background: bool = False
    landed: threading.Event = field(default_factory=threading.Event)
    errors: dict[int, BoxlinkError] = field(default_factory=dict)
    plains: dict[int, bytes | memoryview] = field(default_factory=dict)  # what a reader's own flight has brought


class Watch(Protocol):
    """Told what readers do; safe between threads, and quick, since they wait for it."""

    def read(self, start: int, stop: int, extents: Sequence[Extent]) -> None:
        """Somebody reads this range, in which these extents are."""

    def waits(self) -> None:
        """Somebody begins to wait for the store."""

    def waited(self, seconds: float) -> None:
        """Somebody has waited for it."""


class Blob:
    """Bytes at positions of one dataset's address space, right or an error. Safe between threads.

    What is fetched is fetched by threads of its own: a reader may give up, a fetch ends when the store's deadlines say.
    """

    def __init__(
        self, store: Store, root: str, extents: Extents, cache: BlobCache, clock: Clock, near: Near | None = None
    ) -> None:
        self._store, self._root, self._map, self._cache, self._clock = store, root, extents, cache, clock
        self._near = near
        self._flights: dict[int, _Flight] = {}
        self._failures = Failures()
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch")
        # One at a time: threads that hash and write side by side keep each other, and readers, from the interpreter.
        self._keeping = threading.Semaphore(_KEEPERS)
        self._usual_s = PATIENCE_S  # what a reader's own fetch takes, a moving average
        self.counts = BlobCounts()
        self.watch: Watch | None = None

    def close(self) -> None:
        """What is under way is waited for."""
        self._fetchers.shutdown(cancel_futures=True)

    def read(self, start: int, length: int, known: Sequence[Extent] | None = None) -> bytes:
        """The bytes at [start, start + length); where no file of the map is, zeros. Any BoxlinkError of the store.

        ``known``: the extents there, where the caller has them; the map is not asked.
        """
        extents = self._map.overlapping(start, start + length) if known is None else known
        data = self._cache.read(start, length, extents)
        if data is None:
            before_waiting()  # whoever waits reads anew, and only that counts
        self.counts.reads += 1
        watch = self.watch
        if watch is not None:
            watch.read(start, start + length, extents)
        return self._wait_for(start, length, extents, watch) if data is None else data

    def _wait_for(self, start: int, length: int, extents: Sequence[Extent], watch: Watch | None) -> bytes:
        self.counts.faults += 1
        started = self._clock.monotonic()
        if watch is not None:
            watch.waits()
        try:
            return self._read_lacking(start, length, extents)
        except BoxlinkError:
            self.counts.errors += 1
            raise
        finally:
            took_s = self._clock.monotonic() - started
            self.counts.fault_s.append(took_s)
            if watch is not None:
                watch.waited(took_s)

    def _read_lacking(self, start: int, length: int, extents: Sequence[Extent]) -> bytes:
        """What is fetched is handed out from memory: the cache may have no room for it, or have let it go again."""
        deadline = self._clock.monotonic() + DEADLINE_S
        parts: list[tuple[int, bytes | memoryview]] = []  # put together in the end: hundreds may wait here
        left = extents
        while left:
            lacking: list[Extent] = []
            for extent in left:
                low, high = max(extent.position, start), min(extent.stop, start + length)
                piece = self._cache.read(low, high - low, [extent])
                if piece is None:
                    lacking.append(extent)
                else:
                    parts.append((low, piece))
            self._failures.check((extent.position for extent in lacking), self._clock.monotonic())
            fetched = self._make_resident(lacking, deadline) if lacking else {}
            for extent in lacking:
                plain = fetched.get(extent.position)
                if plain is not None:
                    low, high = max(extent.position, start), min(extent.stop, start + length)
                    parts.append((low, memoryview(plain)[low - extent.position : high - extent.position]))
            left = [extent for extent in lacking if extent.position not in fetched]
            if left and self._clock.monotonic() > deadline:
                raise Unavailable("the store did not answer in time", key=self._key(left[0].chunk))
        data = bytearray(length)
        for at, part in parts:
            data[at - start : at - start + len(part)] = part
        return bytes(data)

    def lacking(self, start: int, stop: int) -> list[Extent]:
        """The extents of a range that are not here, or not right."""
        return self._cache.lacking(self._map.overlapping(start, stop))

    def fetch(self, store: Store, extents: Sequence[Extent]) -> dict[int, BoxlinkError]:
        """In the background: bring what of these nobody is fetching and is not here, from a store that need not try
        again; what failed, by position. Whoever then waits for one of them shares it, unless it takes long."""
        flight = _Flight(is_background=True)
        with self._lock:
            own = [extent for extent in extents if extent.position not in self._flights]
            self._flights.update((extent.position, flight) for extent in own)
        return self._fetch_own(store, own, flight)

    def _neighbours(self, wanted: list[Extent]) -> list[Extent]:
        """What lies around these in the same packs and is not here either."""
        packs = {extent.chunk.pack for extent in wanted}
        positions = {extent.position for extent in wanted}
        start = wanted[0].position // WINDOW_BYTES * WINDOW_BYTES
        stop = -(-wanted[-1].stop // WINDOW_BYTES) * WINDOW_BYTES
        around = self._map.overlapping(start, stop)
        return self._cache.lacking(
            [extent for extent in around if extent.position not in positions and extent.chunk.pack in packs]
        )

    def _make_resident(self, wanted: list[Extent], deadline: float) -> dict[int, bytes | memoryview]:
        """Have fetched what nobody is fetching, with its neighbours, and wait for what is wanted. The bytes of what was
        fetched, by position; the rest another one has put into the cache."""
        flights = self._joined(wanted, self._neighbours(wanted))
        slow = self._slow(wanted, flights)
        if slow:
            flights.update(self._joined(slow, []))
        for extent in wanted:
            flight = flights[extent.position]
            if not flight.landed.wait(max(deadline - self._clock.monotonic(), 0)):
                late = Unavailable("the store did not answer in time", key=self._key(extent.chunk))
                positions = (other.position for other in wanted if not flights[other.position].landed.is_set())
                self._failures.add([(at, late) for at in positions], self._clock.monotonic(), DEADLINE_S)
                raise late
            if extent.position in flight.errors:
                raise flight.errors[extent.position]
        plains = ((extent.position, flights[extent.position].plains.get(extent.position)) for extent in wanted)
        return {position: plain for position, plain in plains if plain is not None}

    def _joined(self, wanted: list[Extent], neighbours: list[Extent]) -> dict[int, _Flight]:
        """The flights of what is wanted: those under way, and one that begins for all others."""
        own_flight = _Flight()
        with self._lock:
            own = [extent for extent in (*wanted, *neighbours) if extent.position not in self._flights]
            self._flights.update((extent.position, own_flight) for extent in own)
            flights = {extent.position: self._flights[extent.position] for extent in wanted}
        if own:
            self._fetchers.submit(self._fetch_own, self._store, own, own_flight)
        return flights

    def _slow(self, wanted: list[Extent], flights: dict[int, _Flight]) -> list[Extent]:
        """What a reader should fetch itself, since the background has not brought it by now: it may be about to come
        with megabytes of others, or have failed. Its flights are nobody's any more."""
        patience_ends = self._clock.monotonic() + min(PATIENCE_S, self._usual_s)
        slow: list[Extent] = []
        for extent in wanted:
            flight = flights[extent.position]
            if flight.is_background:
                has_landed = flight.landed.wait(max(patience_ends - self._clock.monotonic(), 0))
                if not has_landed or extent.position in flight.errors:
                    slow.append(extent)
        with self._lock:
            for extent in slow:
                if self._flights.get(extent.position) is flights[extent.position]:
                    del self._flights[extent.position]
        return slow

    def _fetch_own(self, store: Store, extents: Sequence[Extent], flight: _Flight) -> dict[int, BoxlinkError]:
        """Fetch, and tell those who wait how it went, for each extent by itself; what failed, by position."""
        errors: dict[int, BoxlinkError] = dict.fromkeys(
            (extent.position for extent in extents), Unavailable("a fetch ended early")
        )
        started = self._clock.monotonic()
        try:
            # What another thread has brought since this one looked is not fetched again.
            lacking = self._cache.lacking(extents)
            unkept: dict[int, BoxlinkError] = {}
            if self._near is not None:
                patience_s = _NEAR_S if flight.is_background else min(_NEAR_OF * self._usual_s, _NEAR_S)
                lacking = self._fetch_near(self._near, lacking, flight, unkept, patience_s)
            for _ in range(_TRIES):
                errors = {**unkept, **self._fetch(store, lacking, flight)}
                # Bits that flipped on their way; what lies damaged in the store stays damaged.
                lacking = [extent for extent in lacking if isinstance(errors.get(extent.position), Corrupt)]
                if not lacking:
                    break
            if self._near is not None and errors:
                # What the store cannot give now the volume may have, however slow it is.
                failed = [extent for extent in extents if extent.position in errors.keys() - unkept.keys()]
                left = self._fetch_near(self._near, failed, flight, unkept, None)
                errors = {**unkept, **{extent.position: errors[extent.position] for extent in left}}
            if not flight.is_background:
                self._usual_s += (self._clock.monotonic() - started - self._usual_s) / _USUAL_OF
        finally:
            with self._lock:
                for extent in extents:
                    if self._flights.get(extent.position) is flight:
                        del self._flights[extent.position]
            if errors and not flight.is_background:
                now = self._clock.monotonic()
                self._failures.add(errors.items(), now, now - started)
            flight.errors = errors
            flight.landed.set()
        return errors

    def _fetch_near(
        self,
        near: Near,
        extents: list[Extent],
        flight: _Flight,
        errors: dict[int, BoxlinkError],
        patience_s: float | None,
    ) -> list[Extent]:
        """Bring what a nearer place has, and gives in time; what it does not."""
        found = near.read(extents, patience_s)
        with self._keeping if flight.is_background else contextlib.nullcontext():
            self._keep(found, flight, errors)
        self.counts.near_chunks += len(found)
        self.counts.near_bytes += sum(extent.chunk.plain_bytes for extent, _ in found)
        here = {extent.position for extent, _ in found}
        return [extent for extent in extents if extent.position not in here]

    def _fetch(self, store: Store, extents: Sequence[Extent], flight: _Flight) -> dict[int, BoxlinkError]:
        """Bring extents into the cache: ranges of packs, each chunk verified before it is written. What failed, by
        position."""
        errors: dict[int, BoxlinkError] = {}
        by_pack = coalesce_chunks(extent.chunk for extent in extents)
        for pack, ranges in by_pack.items():
            here = [extent for extent in extents if extent.chunk.pack == pack]
            key = names.pack_key(self._root, ulid_text(pack))
            try:
                answers = store.get_ranges(key, ranges)
            except BoxlinkError as error:
                errors.update((extent.position, error) for extent in here)
                continue
            with self._keeping if flight.is_background else contextlib.nullcontext():
                found = _verified(here, key, ranges, answers, errors)
                self._keep(found, flight, errors)
            self.counts.fetched_chunks += len(found)
            self.counts.fetched_bytes += sum(extent.chunk.stored_bytes for extent, _ in found)
        return errors

    def _keep(self, found: list[Piece], flight: _Flight, errors: dict[int, BoxlinkError]) -> None:
        kept = self._cache.put(found)
        if not flight.is_background:
            flight.plains.update((extent.position, plain) for extent, plain in found)
        elif kept < len(found):
            # Nobody waits for these: what found no room was fetched in vain.
            errors.update(
                (extent.position, Full("the cache has no room")) for extent, _ in found if not self._cache.has(extent)
            )

    def _key(self, chunk: ChunkRef) -> str:
        return names.pack_key(self._root, ulid_text(chunk.pack))


def _verified(
    extents: Sequence[Extent],
    key: str,
    ranges: list[tuple[int, int]],
    answers: list[Buffer],
    errors: dict[int, BoxlinkError],
) -> list[Piece]:
    """Chunks out of the ranges of their pack; what is wrong goes to ``errors``."""
    found: list[Piece] = []
    for extent in extents:
        try:
            found.append((extent, chunk_in(extent.chunk, ranges, answers)))
        except Corrupt as error:
            error.key = key
            errors[extent.position] = error
    return found


def chunk_in(chunk: ChunkRef, ranges: list[tuple[int, int]], answers: list[Buffer]) -> bytes | memoryview:
    """A chunk, verified, out of the ranges of its pack."""
    index = bisect.bisect_right(ranges, (chunk.offset, 1 << 62)) - 1
    at = chunk.offset - ranges[index][0]
    return decode_chunk(chunk, memoryview(answers[index])[at : at + chunk.stored_bytes])
