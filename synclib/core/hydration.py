"""What a lazy mount fetches before it is asked to: what next, how much at once, and when it holds back.

The order is demand, then what a trace says (by deadline), then what lies ahead of those who read on, then the rest, the
largest ranges first. Demand has fetchers of its own; the others share what :class:`Pace` allows them. Times are seconds
of one monotonic clock.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from synclib.core.extent_map import Extent
from synclib.core.flights import Flights
from synclib.core.plan import GAP_BYTES_MAX

# A range of a few MiB costs hardly more than its bytes; a longer one only keeps those waiting who join it.
RANGE_BYTES_MAX = 8 << 20
RANGE_BYTES_MIN = 256 << 10
# What a start-up needs soon should not wait for much that it needs later.
TRACE_RANGE_BYTES_MAX = 2 << 20
# Who reads on waits for the first byte of what lies ahead: several shorter ranges at once bring it sooner.
AHEAD_RANGE_BYTES_MAX = 4 << 20
# Fetches in the background; demand has as many again as it wants (lazy/blob.py).
FLIGHTS_MAX = 48
_FLIGHTS_FIRST = 8
BYTES_IN_FLIGHT_MAX = 64 << 20
# While a start-up is under way the rest waits until nobody has waited for this long.
_CALM_S = 1.0
# Demand is slowed down when its p95 is above this many times what it is without us; what is below the floor nobody
# notices.
_SLOWDOWN = 2.0
_FLOOR_S = 0.02
_PAUSE_S = 1.0
_SAMPLES_MIN, _SAMPLES_MAX = 8, 64
_SAMPLES_AGE_S = 10.0
_BACK_OFF_FIRST_S, _BACK_OFF_MAX_S = 0.5, 30.0
_DISK_PAUSE_S = 10.0
_BUSY_PAUSE_S = 2.0
_FOR_THE_REST = ("demand", "disk pressure", "limit")  # what only the rest waits for
_CREDIT_S = 0.2  # of a rate: what came late may be made up for

_Value = TypeVar("_Value")


class Work(enum.IntEnum):
    """Why something is fetched that nobody waits for; the more urgent first."""

    TRACE = 0
    AHEAD = 1
    REST = 2


class Unit(msgspec.Struct, frozen=True):
    """Extents that are fetched with one request: they lie together in one pack. ``due``: orders those of one kind."""

    work: Work
    due: float
    extents: Sequence[Extent]

    @property
    def range_bytes(self) -> int:
        last = self.extents[-1].chunk
        return last.offset + last.stored_bytes - self.extents[0].chunk.offset


def cut(extents: Iterable[Extent], range_bytes_max: int) -> list[list[Extent]]:
    """Groups of extents, each one range of one pack of at most that many bytes (or one extent), by offset."""
    by_pack: dict[bytes, list[Extent]] = {}
    for extent in extents:
        by_pack.setdefault(extent.chunk.pack, []).append(extent)
    groups: list[list[Extent]] = []
    for found in by_pack.values():
        found.sort(key=lambda extent: extent.chunk.offset)
        first = found[0].chunk
        stop = first.offset
        group: list[Extent] = []
        for extent in found:
            chunk = extent.chunk
            end = chunk.offset + chunk.stored_bytes
            if group and (chunk.offset - stop > GAP_BYTES_MAX or max(end, stop) - first.offset > range_bytes_max):
                groups.append(group)
                group, first, stop = [], chunk, chunk.offset
            group.append(extent)
            stop = max(stop, end)
        groups.append(group)
    return groups


def trace_units(found: Iterable[tuple[float, Extent]]) -> list[Unit]:
    """Units of what a trace says, the earliest deadline first: (seconds from the start, extent)."""
    due: dict[int, float] = {}
    extents: dict[int, Extent] = {}
    for at_s, extent in found:
        if at_s < due.get(extent.position, float("inf")):
            due[extent.position] = at_s
            extents[extent.position] = extent
    units = [
        Unit(Work.TRACE, min(due[extent.position] for extent in group), group)
        for group in cut(extents.values(), TRACE_RANGE_BYTES_MAX)
    ]
    return sorted(units, key=lambda unit: unit.due)


def rest_units(extents: Iterable[Extent], range_bytes_max: int) -> list[Unit]:
    """Units of a part of the rest, the largest last: a list is taken from its end."""
    units = [Unit(Work.REST, 0.0, group) for group in cut(extents, range_bytes_max)]
    return sorted(units, key=lambda unit: unit.range_bytes)


class Streams:
    """Finds who reads on, from the places of reads: what they read next is worth having, as much as they have read.

    Several readers of the files of a folder read on together, each a piece here and there; so what counts is that a
    window was read nearly whole, in whatever order. A kernel reads ahead by itself, a few hundred KiB beyond what was
    asked for: with a smaller window whoever reads small files here and there would have twice what he needs.
    """

    # As much as is on its way while a store some tens of milliseconds away answers, several times over.
    WINDOW_BYTES, MOST_BYTES = 512 << 10, 32 << 20
    _WHOLE_BYTES = WINDOW_BYTES * 3 // 4
    _KEPT = 256

    def __init__(self) -> None:
        self._read: OrderedDict[int, int] = OrderedDict()  # bytes, by window
        # Windows that were read: (how many before it, without a gap; up to where more was asked for).
        self._whole: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def read(self, start: int, stop: int) -> tuple[int, int] | None:
        """Told of a read; the range that should be had next, or None."""
        found: tuple[int, int] | None = None
        for window in range(start // self.WINDOW_BYTES, -(-stop // self.WINDOW_BYTES)):
            if window in self._whole:
                continue
            begin = window * self.WINDOW_BYTES
            size = self._read.pop(window, 0) + min(stop, begin + self.WINDOW_BYTES) - max(start, begin)
            if size >= self._WHOLE_BYTES:
                more = self._next(window)
                # It goes on where the one before ends.
                found = (found[0], more[1]) if found and more else more or found
            else:
                _put(self._read, window, size, self._KEPT)
        return found

    def _next(self, window: int) -> tuple[int, int] | None:
        """What comes after a window that was read."""
        before, asked = self._whole.get(window - 1, (0, 0))
        stop = (window + 1) * self.WINDOW_BYTES
        ahead = min((before + 1) * self.WINDOW_BYTES, self.MOST_BYTES)
        asked = max(asked, stop)
        is_due = asked - stop <= ahead // 2
        _put(self._whole, window, (before + 1, stop + ahead if is_due else asked), self._KEPT)
        return (asked, stop + ahead) if is_due else None


def _put(places: OrderedDict[int, _Value], at: int, value: _Value, kept: int) -> None:
    """Those that were put there last are kept."""
    places[at] = value
    if len(places) > kept:
        places.popitem(last=False)


class Pace:
    """How much may be under way in the background, told what happens. Not safe between threads.

    ``rate``: bytes a second, 0 for as fast as it goes.
    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._free_at = 0.0
        self._flights = Flights(_FLIGHTS_FIRST, FLIGHTS_MAX)
        self._trace_flights = Flights(FLIGHTS_MAX, FLIGHTS_MAX)
        self.flights = 0
        self.bytes_in_flight = 0
        self.is_starting = True  # a start-up is under way: what it asks for comes before the rest
        self._busy_until = 0.0  # when something of ours was under way last
        self._demanded_at = -_CALM_S
        self._waits: dict[str, float] = {}  # why, and until when
        self._failures = 0
        self._alone: deque[float] = deque(maxlen=_SAMPLES_MAX)
        self._beside: deque[tuple[float, float]] = deque(maxlen=_SAMPLES_MAX)  # when, how long
        self.pauses = 0

    def set_rate(self, rate: int) -> None:
        self._rate, self._free_at = rate, 0.0

    @property
    def range_bytes_max(self) -> int:
        """How long a range of the rest may be: with a low rate not many seconds' worth."""
        return max(RANGE_BYTES_MIN, min(RANGE_BYTES_MAX, self._rate or RANGE_BYTES_MAX))

    def delay(self, now: float, work: Work, size: int) -> float:
        """Seconds until work of that size may be begun; 0: now. When others must land first that is not known: then
        what :meth:`landed` changes has to be waited for, too."""
        flights = self._trace_flights if work is Work.TRACE else self._flights
        if self.flights >= flights.limit or (self.flights and self.bytes_in_flight + size > BYTES_IN_FLIGHT_MAX):
            return _PAUSE_S
        return max(0.0, self._blocked(now, work)[0] - now)

    def why(self, now: float) -> str:
        """What the rest waits for now; empty when it goes on."""
        until, reason = self._blocked(now, Work.REST)
        return reason if until > now else ""

    def _blocked(self, now: float, work: Work) -> tuple[float, str]:
        found = [(self._free_at, "rate")]
        for reason, until in self._waits.items():
            if reason not in _FOR_THE_REST or work is Work.REST:
                found.append((until, reason))
        if work is Work.REST and self.is_starting:
            found.append((self._demanded_at + _CALM_S, "start-up"))
        return max(found)

    def began(self, now: float, size: int) -> None:
        """A unit is under way."""
        self.flights += 1
        self.bytes_in_flight += size
        if self._rate:
            self._free_at = max(self._free_at, now - _CREDIT_S) + size / self._rate

    def landed(self, now: float, size: int) -> None:
        """A unit is here, whole or not."""
        self.flights -= 1
        self.bytes_in_flight -= size
        self._busy_until = now

    def went_well(self, work: Work) -> None:
        self._failures = 0
        (self._trace_flights if work is Work.TRACE else self._flights).landed(is_pushed_back=False)

    def pushed_back(self, now: float) -> None:
        """The store did not answer, or said that it is too much: wait, longer each time, and then with half as many."""
        if self._waits.get("store", 0.0) > now:
            return  # one that was under way when the first failed
        self._waits["store"] = now + min(_BACK_OFF_MAX_S, _BACK_OFF_FIRST_S * 2.0**self._failures)
        self._failures += 1
        for flights in (self._flights, self._trace_flights):
            flights.landed(is_pushed_back=True)

    def disk_is_full(self, now: float) -> None:
        """What room there is belongs to demand."""
        self._waits["disk"] = now + _DISK_PAUSE_S

    def limit_is_reached(self, now: float) -> None:
        """Nothing more comes into the cache but in the place of something: nothing goes for what nobody asked for."""
        self._waits["limit"] = now + _DISK_PAUSE_S

    def disk_is_busy(self, now: float) -> None:
        """Others wait for the disk: let them have it, and go on with half as much under way."""
        self._waits["disk pressure"] = now + _BUSY_PAUSE_S
        self._flights.landed(is_pushed_back=True)

    def demanded(self, now: float) -> None:
        """A reader waits for the store."""
        self._demanded_at = now

    def served(self, now: float, took_s: float) -> None:
        """A reader has waited for the store."""
        self._demanded_at = now
        if not self.flights and self._busy_until < now - took_s:
            self._alone.append(took_s)
            return
        if self._waits.get("demand", 0.0) > now:
            return  # it waited for what was under way before the pause
        self._beside.append((now, took_s))
        while self._beside and self._beside[0][0] < now - _SAMPLES_AGE_S:
            self._beside.popleft()
        if len(self._beside) < _SAMPLES_MIN:
            return
        # Who was never seen without us is listened to for a moment.
        is_known = len(self._alone) >= _SAMPLES_MIN
        if is_known and p95([took for _, took in self._beside]) <= max(_FLOOR_S, _SLOWDOWN * p95(self._alone)):
            return
        self._beside.clear()
        self._waits["demand"] = now + _PAUSE_S
        self.pauses += 1
        if is_known:
            self._flights.landed(is_pushed_back=True)


def p95(values: Iterable[float]) -> float:
    """The 95th percentile of at least one value."""
    ordered = sorted(values)
    return ordered[len(ordered) * 95 // 100]


class Eta:
    """When all will be here, from how it went lately."""

    _KEPT, _EVERY_S = 30, 1.0

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=self._KEPT)

    def note(self, now: float, done: int) -> None:
        """Told, now and then, how many bytes are here."""
        if not self._seen or now - self._seen[-1][0] >= self._EVERY_S:
            self._seen.append((now, done))

    def seconds(self, done: int, total: int) -> float | None:
        """Seconds until ``total`` bytes are here; None where nothing moves."""
        if done >= total:
            return 0.0
        if len(self._seen) < 2:
            return None
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return None if last <= first else (total - done) * (last_at - first_at) / (last - first)
