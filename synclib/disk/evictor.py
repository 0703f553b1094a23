"""Makes room in a cache: has chunks forgotten, durably, then takes their bytes away.

One process at a time does it for a cache, whoever needs the room. What no mounted seq has goes first; then what the
hand of the clock ends (core/eviction.py). What is pinned stays, and what start-ups need first, up to half of what the
cache may take; and all does where the kernel may have the cache's file mounted without us (disk/hydrated.py).
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import (
    NONE,
    SHARED,
    SPAN_UNITS_MAX,
    empty_gaps,
    held_in,
    hole_of,
    part_to_evict,
    pass_over,
    units_of,
)
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_pins import Pins
from synclib.disk.cache_record import ClockHand
from synclib.disk.faults import disk_errors
from synclib.disk.hydrated import native_lock, was_native
from synclib.disk.start_trace import Spared
from synclib.errors import BoxlinkError

# How much is looked at with the lock held; how much is looked at and goes at most before the record is made durable.
_WINDOW_UNITS = 1 << 14
_BATCH_WINDOWS = 64
_BATCH_UNITS = (64 << 20) // ADDRESS_UNIT
# A chunk is met that often at most before it goes.
_ROUNDS_MAX = 8
_LOOK_S = 5.0
_LOCK_S = 10.0

# The units where chunks of mounted seqs begin, in [first, stop).
WantedStarts = Callable[[int, int], set[int]]


class _Victim(NamedTuple):
    unit: int
    is_shared: bool


class Evictor:
    """Of the cache that is open in ``directory``. ``mounted``: a word that changes when other seqs are mounted, and
    what those have."""

    def __init__(self, cache: BlobCache, directory: Path, mounted: Callable[[], tuple[str, WantedStarts]]) -> None:
        self._cache, self._mounted = cache, mounted
        self._record = cache.record
        self.pins, self._spared = Pins(directory), Spared(directory)
        self._directory, self._turn = directory, directory / "evicting"
        # Up to which unit it was looked for what no mounted seq has, for that word.
        self._looked: tuple[str, int] = ("", 0)

    def wait(self, ended: threading.Event) -> bool:
        """Until the reserve may be short; False at the end (set ``is_short`` behind ``ended``)."""
        self._cache.is_short.wait(_LOOK_S)
        self._cache.is_short.clear()
        return not ended.is_set()

    def keep_reserve(self) -> None:
        """Make room, if there is less than half of the reserve."""
        if self._shortage():
            self.make_room(self._shortage, self._cache.limits.spared_bytes(*self._cache.usage()))

    def _shortage(self) -> int:
        return self._cache.limits.shortage(*self._cache.usage())

    def evict_to(self, target_bytes: int) -> None:
        """Until the cache takes no more than that, or nothing is left that may go."""
        self.make_room(lambda: max(self._cache.held_bytes() - target_bytes, 0), target_bytes // 2)

    def make_room(self, shortage: Callable[[], int], spared_bytes: int) -> None:
        """Until ``shortage``, in bytes, is 0, or nothing is left that may go, or another process is at it.
        ``spared_bytes``: how much stays of what start-ups need."""
        with disk_errors(), open(self._turn, "ab") as turn:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self._record.refresh()
            self.pins.refresh()
            self._spared.refresh(spared_bytes)
            unknown = self._orphans_unknown(shortage)
            # Rounds in which nothing went.
            idle, round_windows = 0, -(-self._record.units // _WINDOW_UNITS)
            while (short := shortage()) and idle <= _ROUNDS_MAX * round_windows:
                with native_lock(self._directory):
                    if was_native(self._directory):
                        return
                    windows, has_freed = self._batch(short)
                idle = 0 if has_freed else idle + windows
            if unknown is not None and shortage():
                raise unknown

    def _orphans_unknown(self, shortage: Callable[[], int]) -> BoxlinkError | None:
        """What no mounted seq has goes first. Why that cannot be told now, as while the store is away, which may have
        to say it: room is made all the same."""
        try:
            self._end_orphans(shortage)
        except BoxlinkError as error:
            return error
        return None

    def _batch(self, shortage: int) -> tuple[int, bool]:
        """Let the hand pass over windows until enough goes; how many, and whether anything went."""
        wanted = min(-(-shortage // ADDRESS_UNIT), _BATCH_UNITS)
        victims: list[_Victim] = []
        gaps: list[tuple[int, int]] = []
        freed = windows = 0
        while freed < wanted and windows < _BATCH_WINDOWS:
            windows += 1
            with self._record.locked(_LOCK_S) as has_lock:
                if not has_lock:
                    break
                found, units = self._pass(wanted - freed, gaps)
            victims += found
            freed += units
        return windows, self._take_away(victims, gaps)

    def _pass(self, wanted: int, gaps: list[tuple[int, int]]) -> tuple[list[_Victim], int]:
        """One window, with the lock; what goes, and about how many units that frees. ``gaps`` that should be empty and
        are not are added."""
        hand = self._record.read_hand()
        first = _begin(hand, self._record.units)
        back = min(first, SPAN_UNITS_MAX)
        window = self._record.states(first, first + _WINDOW_UNITS)
        part = part_to_evict(hand.held_units, hand.main_units)
        done = pass_over(window, part, wanted, lambda index: self._stays(first + index))
        stop = len(done.states)
        self._record.change_states(first, window[:stop], done.states)
        hand.unit = first + stop
        hand.held_units += done.held_change
        hand.main_units += done.main_change
        hand.seen_held += done.held_units
        hand.seen_main += done.main_units
        self._record.write_hand(hand)
        units = sum(units_of(window[index]) for index in done.victims)
        for low, high in empty_gaps(self._record.states(first - back, first + stop), back):
            at = self._cache.first_data(first - back + low, first - back + high)
            if at < first - back + high:
                gaps.append((at, first - back + high))
        return [_Victim(first + index, bool(window[index] & SHARED)) for index in done.victims], units

    def _stays(self, unit: int) -> bool:
        return self.pins.holds(unit) or self._spared.holds(unit)

    def _end_orphans(self, shortage: Callable[[], int]) -> None:
        """What no mounted seq has goes, as far as room is needed."""
        word, starts = self._mounted()
        at = self._looked[1] if self._looked[0] == word else 0
        while at < self._record.units and shortage():
            stop = min(at + _WINDOW_UNITS, self._record.units)
            if any(True for _ in held_in(self._record.states(at, stop))):
                wanted = starts(at, stop)
                with native_lock(self._directory):
                    if was_native(self._directory):
                        return
                    self._take_away(self._forget_orphans(at, stop, wanted), [])
            at = stop
        self._looked = (word, at)

    def _forget_orphans(self, first: int, stop: int, wanted: set[int]) -> list[_Victim]:
        with self._record.locked(_LOCK_S) as has_lock:
            if not has_lock:
                return []
            before, gone = self._record.states(first, stop), 0
            states = bytearray(before)
            found = [
                _Victim(first + index, bool(states[index] & SHARED))
                for index in held_in(before)
                if first + index not in wanted and not self.pins.holds(first + index)
            ]
            for victim in found:
                gone += units_of(states[victim.unit - first])
                states[victim.unit - first] = NONE
            self._record.change_states(first, before, bytes(states))
            hand = self._record.read_hand()
            hand.held_units -= gone
            self._record.write_hand(hand)
        return found

    def _take_away(self, victims: list[_Victim], gaps: list[tuple[int, int]]) -> bool:
        """Make it durable that the victims are forgotten, then give their blocks back; whether any were."""
        if not victims and not gaps:
            return False
        self._record.sync_states()
        held = self._cache.held_bytes()
        done = 0
        for victim in victims:
            with self._record.locked(_LOCK_S) as has_lock:
                if has_lock:
                    first, stop = self._hole(victim)
                    self._cache.take_away(max(first, done), stop)
                    done = max(stop, done)
        for first, stop in gaps:
            with self._record.locked(_LOCK_S) as has_lock:
                if has_lock and not any(True for _ in held_in(self._record.states(first - SPAN_UNITS_MAX, stop))):
                    self._cache.take_away(first, stop)
        freed = held - self._cache.held_bytes()
        self._cache.counts.evicted_chunks += len(victims)
        self._cache.counts.evicted_bytes += max(freed, 0)
        return freed > 0

    def _hole(self, victim: _Victim) -> tuple[int, int]:
        base = max(victim.unit - SPAN_UNITS_MAX, 0)
        around = self._record.states(base, victim.unit + SPAN_UNITS_MAX + 1)
        first, stop = hole_of(around, victim.unit - base, is_shared=victim.is_shared)
        return base + first, min(base + stop, self._record.units)


def _begin(hand: ClockHand, units: int) -> int:
    """Where the hand goes on. At the beginning of a round the counts become what the last one saw."""
    if hand.unit < units:
        return hand.unit
    hand.held_units, hand.main_units = hand.seen_held, hand.seen_main
    hand.unit = hand.seen_held = hand.seen_main = 0
    return 0
