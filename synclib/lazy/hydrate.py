"""Fetches in the background what a mount does not have: what a trace says, what lies ahead of readers, then all.

It decides nothing (core/hydration.py does); it asks, waits and counts. One thread finds what is next, others fetch it
into the same blob that readers use: whatever is under way is under way once.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from synclib.clock import Clock
from synclib.core.extent_map import Extent
from synclib.core.hydration import (
    AHEAD_RANGE_BYTES_MAX,
    FLIGHTS_MAX,
    Eta,
    Pace,
    Streams,
    Unit,
    Work,
    cut,
    rest_units,
    trace_units,
)
from synclib.disk.blob_cache import BlobCache
from synclib.disk.faults import is_of_the_world
from synclib.disk.hydrated import Stamp
from synclib.disk.pressure import io_pressure
from synclib.errors import BoxlinkError, Full
from synclib.lazy.blob import Blob, Extents
from synclib.lazy.touches import Touches
from synclib.store.base import Store

# What of the rest is planned together, so that neighbours in a pack meet.
_WINDOW_BYTES, _WINDOW_EXTENTS = 64 << 20, 8192
_AHEAD_KEPT = 64
_IDLE_S = 1.0
# After a pass that left something: when nothing came in it, longer each time (others may have brought it); when others
# wrote to the same file meanwhile.
_RETRY_FIRST_S, _RETRY_S, _UNSETTLED_S = 1.0, 60.0, 5.0
# Above this part of the time that everything waits for the disk, what nobody waits for waits, too.
_PRESSURE_MAX, _PRESSURE_EVERY_S = 0.5, 1.0
# Room on the disk that is left to demand and to others.
_FREE_BYTES_MIN, _FREE_SHARE_MIN = 1 << 30, 0.05

# (seconds since a start, extent) of what earlier starts needed.
ReadTrace = Callable[[], Iterable[tuple[float, Extent]]]


class Hydrator:
    """Of one blob; it is the blob's watch. ``store``: one that does not try again by itself. ``on_whole`` is called
    when all was found right and made durable, and nobody has written to the cache meanwhile.

    ``is_whole``: fetch all; else what the trace says and what lies ahead of readers. ``touches``: told of reads.
    ``pressure``: how much waits for the disk, 0 to 1.
    """

    def __init__(
        self,
        blob: Blob,
        extents: Extents,
        cache: BlobCache,
        store: Store,
        clock: Clock,
        *,
        rate: int,
        is_whole: bool,
        total_bytes: int,
        touches: Touches,
        read_trace: ReadTrace,
        on_whole: Callable[[Stamp], None],
        pressure: Callable[[], float] = io_pressure,
    ) -> None:
        self._blob, self._map, self._cache, self._store, self._clock = blob, extents, cache, store, clock
        # With a limit only what fits beside the room that readers need; what does not would drive out what they read.
        self._is_whole = is_whole and total_bytes <= cache.limits.limit_bytes_left(0)
        self._total_bytes, self._touches = total_bytes, touches
        self._read_trace, self._on_whole, self._pressure = read_trace, on_whole, pressure
        self._pressure_due = 0.0
        self._changed = threading.Condition()
        self._pace, self._eta, self._streams = Pace(rate), Eta(), Streams()
        self._trace: list[Unit] = []  # each of these lists: the next one last
        self._near: list[Unit] = []
        self._rest: list[Unit] = []
        self._ahead: deque[tuple[int, int]] = deque(maxlen=_AHEAD_KEPT)
        self._walk: Iterator[list[Extent]] | None = None
        self._stamp: Stamp | None = None  # of the cache when the walk began
        self._lacked = 0  # extents, in this walk
        self._right_bytes = 0  # in the cache when the walk began
        self._vain_walks = 0  # one after the other, that brought nothing
        self._walk_at = 0.0
        self._held_by, self._holds = "", 0  # why it does not go on; how often in a row it did not
        self._is_stopping = self.is_done = False
        self._began_at = self.done_s = 0.0  # when it began; how long it took
        self._changes = 0  # what may matter for what is next
        self.fetched_units = self.fetched_bytes = self.failed_extents = 0
        self._fetchers = ThreadPoolExecutor(FLIGHTS_MAX, thread_name_prefix="hydrate")
        self._thread = threading.Thread(target=self._run, name="hydration")

    def start(self) -> None:
        self._began_at = self._clock.monotonic()
        self._blob.watch = self
        self._thread.start()

    def stop(self) -> None:
        """What is under way is waited for."""
        with self._changed:
            self._is_stopping = True
            self._tell()
        if self._thread.is_alive():  # it may never have begun
            self._thread.join()
        self._fetchers.shutdown(cancel_futures=True)

    def set_rate(self, bytes_per_s: int) -> None:
        """From now on; 0: as fast as it goes."""
        with self._changed:
            self._pace.set_rate(bytes_per_s)
            self._tell()

    def start_up_is_over(self) -> None:
        """From now on the rest need not wait for calm."""
        with self._changed:
            self._pace.is_starting = False
            self._tell()

    # What readers do (lazy/blob.py, Watch).

    def read(self, start: int, stop: int, extents: Sequence[Extent]) -> None:
        if self._pace.is_starting:
            self._touches.note(extents)
        if self.is_done:
            return
        with self._changed:
            ahead = self._streams.read(start, stop)
            if ahead is not None:
                self._ahead.append(ahead)
                self._tell()

    def waits(self) -> None:
        with self._changed:
            self._pace.demanded(self._clock.monotonic())

    def waited(self, seconds: float) -> None:
        with self._changed:
            self._pace.served(self._clock.monotonic(), seconds)

    def figures(self) -> dict[str, object]:
        """How it goes, for people and programs."""
        now, done, total = self._clock.monotonic(), self._cache.right_bytes, self._total_bytes
        if self.is_done and not self._cache.may_evict:
            done = total
        with self._changed:
            self._eta.note(now, done)
            eta_s = self._eta.seconds(done, total) if self._is_whole else None
            state = self._state(now)
        return {
            "hydration": state,
            "hydrated_bytes": min(done, total),
            "hydrated_total_bytes": total,
            "hydrated_percent": round(100 * min(done, total) / total, 1) if total else 100.0,
            "hydration_eta_s": None if eta_s is None else round(eta_s, 1),
            "hydration_s": round(self.done_s, 3) if self.is_done else None,
            "hydration_requests": self.fetched_units,
            "hydration_bytes": self.fetched_bytes,
            "hydration_failed": self.failed_extents,
        }

    def _state(self, now: float) -> str:
        if self.is_done:
            return "done"
        if self._held_by:
            return f"waits: {self._held_by}"
        if self._trace:
            return "trace"
        if not self._is_whole:
            return "off"
        why = self._pace.why(now)
        return f"waits: {why}" if why else "rest"

    def _tell(self) -> None:
        """Something changed; under the lock."""
        self._changes += 1
        self._changed.notify_all()

    # The thread that finds what is next.

    def _run(self) -> None:
        try:
            self._trace = trace_units(self._read_trace())[::-1]
            while not self._is_stopping:
                try:
                    self._do_next()
                except (BoxlinkError, OSError) as error:
                    if not self._hold_back(error):
                        raise
                    self._wait(self._changes)
        except Exception:  # a bug of ours: what is read is served all the same
            traceback.print_exc()

    def _do_next(self) -> None:
        changes = self._changes
        units = self._trace or self._next_near() or self._next_rest()
        if units:
            self._held_by, self._holds = "", 0
            self._begin(units)
        else:
            self._wait(changes)

    def _hold_back(self, error: BoxlinkError | OSError) -> bool:
        """What says where things are does not come, or the disk takes nothing: look at all anew later, after longer
        each time. Whether it is of the world."""
        if isinstance(error, OSError) and not is_of_the_world(error):
            return False
        self._held_by = f"{error.kind}: {error.message}" if isinstance(error, BoxlinkError) else str(error.strerror)
        self._walk = None
        self._walk_at = self._clock.monotonic() + min(_RETRY_FIRST_S * 2.0**self._holds, _RETRY_S)
        self._holds = min(self._holds + 1, 10)
        return True

    def _wait(self, changes: int) -> None:
        """Until something changes that was not looked at yet, or another walk is due."""
        with self._changed:
            if not self._is_stopping and self._changes == changes:
                until_walk = self._walk_at - self._clock.monotonic()
                self._changed.wait(min(until_walk, _IDLE_S) if until_walk > 0 else _IDLE_S)

    def _begin(self, units: list[Unit]) -> None:
        """Begin with the next of these, or wait for something that matters for whether it may."""
        with self._changed:
            unit, now = units[-1], self._clock.monotonic()
            size = unit.range_bytes
            if self._is_disk_low(size):
                self._pace.disk_is_full(now)
            elif unit.work is Work.REST and self._cache.limits.limit_bytes_left(self._cache.held_bytes()) < size:
                self._pace.limit_is_reached(now)
            elif unit.work is Work.REST and now >= self._pressure_due:
                self._pressure_due = now + _PRESSURE_EVERY_S
                if self._pressure() > _PRESSURE_MAX:
                    self._pace.disk_is_busy(now)
            delay = self._pace.delay(now, unit.work, size)
            if delay:
                if not self._is_stopping:
                    self._changed.wait(min(delay, _IDLE_S))
                return
            units.pop()
            self._pace.began(now, size)
        self._fetchers.submit(self._fetch, unit, size)

    def _is_disk_low(self, size: int) -> bool:
        found = self._cache.partition()
        reserve = min(_FREE_BYTES_MIN, int(found.f_blocks * found.f_frsize * _FREE_SHARE_MIN))
        return found.f_bavail * found.f_frsize < reserve + size

    def _next_near(self) -> list[Unit]:
        while not self._near and self._ahead:
            start, stop = self._ahead.popleft()
            groups = cut(self._blob.lacking(start, stop), min(self._pace.range_bytes_max, AHEAD_RANGE_BYTES_MAX))
            self._near = [Unit(Work.AHEAD, 0.0, group) for group in reversed(groups)]
        return self._near

    def _next_rest(self) -> list[Unit]:
        """Units of the rest; none where it must wait, or all is done."""
        if not self._is_whole or self.is_done or self._rest:
            return self._rest
        if self._walk is None:
            if self._clock.monotonic() < self._walk_at:
                return []
            self._walk, self._stamp = self._map.walk(), self._cache.stamp()
            self._lacked, self._right_bytes = 0, self._cache.right_bytes
        found: list[Extent] = []
        size = 0
        while size < _WINDOW_BYTES and len(found) < _WINDOW_EXTENTS and self._may_walk():
            try:
                page = next(self._walk, None)
            except BoxlinkError as error:
                self._hold_back(error)
                break  # what was found before it comes meanwhile
            if page is None:
                if not found:
                    self._end_walk()
                break
            lacking = self._cache.lacking(page)
            found += lacking
            size += sum(extent.chunk.plain_bytes for extent in lacking)
        self._lacked += len(found)
        self._rest.extend(rest_units(found, self._pace.range_bytes_max))
        return self._rest

    def _may_walk(self) -> bool:
        """Whether nothing more urgent is to be done: to look through what is here takes from the disk as well."""
        return not (
            self._is_stopping or self._trace or self._ahead or self._pace.delay(self._clock.monotonic(), Work.REST, 0)
        )

    def _end_walk(self) -> None:
        """All was looked at. If nothing lacked, and nobody wrote meanwhile, it is whole."""
        if self._pace.flights or self._rest:
            return  # what lacked is on its way, or must be tried again
        self._walk = None
        now = self._clock.monotonic()
        if self._lacked:
            is_vain = self._cache.right_bytes <= self._right_bytes
            self._vain_walks = min(self._vain_walks + 1, 10) if is_vain else 0
            self._walk_at = now + (min(_RETRY_FIRST_S * 2.0**self._vain_walks, _RETRY_S) if self._vain_walks else 0)
            with self._changed:
                self._tell()
            return
        self._cache.sync()
        stamp = self._cache.stamp()
        if stamp != self._stamp:
            self._walk_at = now + _UNSETTLED_S
            return
        if not self._cache.may_evict:
            self._on_whole(stamp)
        self._held_by = ""
        self.done_s = self._clock.monotonic() - self._began_at
        self.is_done = True

    # The threads that fetch.

    def _fetch(self, unit: Unit, size: int) -> None:
        errors: dict[int, BoxlinkError] | None = None
        try:
            errors = self._blob.fetch(self._store, unit.extents)
        except Exception:  # a bug of ours: the others go on
            traceback.print_exc()
        with self._changed:
            now = self._clock.monotonic()
            self._pace.landed(now, size)
            if errors is not None:
                self._landed(now, unit, size, errors)
            self._tell()

    def _landed(self, now: float, unit: Unit, size: int, errors: dict[int, BoxlinkError]) -> None:
        self.fetched_units += 1
        if any(isinstance(error, Full) for error in errors.values()):
            self._pace.disk_is_full(now)
        elif any(error.is_retryable for error in errors.values()):
            self._pace.pushed_back(now)
        else:
            self._pace.went_well(unit.work)
            self.fetched_bytes += size
            self.failed_extents += len(errors)
            return
        if unit.work is not Work.AHEAD:
            (self._trace if unit.work is Work.TRACE else self._rest).append(unit)
