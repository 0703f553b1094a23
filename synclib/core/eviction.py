"""What a cache lets go when it may not grow: a clock with a time of trial, after S3-FIFO (Yang et al., SOSP 2023).

Each unit of the address space has a state, one byte. Where a chunk begins that is held, it says how it did since it
came; elsewhere it is 0, or remembers one that went.

    FRESH -> TRIAL -> gone, remembered as GHOST      nobody asked for it again while it was on trial
      |        |
      +--use---+-> PROVEN -> MAIN..MAIN+3            counts uses; a pass of the hand over a full main part takes one off
    GHOST + arrival -> PROVEN                        it went too early

The hand passes over the units in order. While less than nine tenths of the bytes are in the main part it ends those on
trial, else those of the main part that are used no more. So what is read once, however much of it, only ever pushes out
what was read once. Reads of one chunk that follow each other closely, as those of its pieces do, are one use.
"""

from __future__ import annotations

import enum
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from synclib.core.entry import ADDRESS_UNIT, CHUNK_BYTES_MAX

NONE, GHOST, FRESH, TRIAL, PROVEN, MAIN = 0, 7, 8, 9, 10, 11
_MAIN_LAST = MAIN + 3
_HELD = 8  # the bit that every state of a held chunk has
# Beside it: the chunk begins amid a unit, in which the file's chunk before it ends; and about how long it is.
SHARED = 16
_KIND, _SIZE_SHIFT = 15, 5
_SIZE_UNITS = (1, 2, 4, 8, 16, 32, 96, 256)
_REST = tuple(shared | size << _SIZE_SHIFT for shared in (0, SHARED) for size in range(len(_SIZE_UNITS)))
# A chunk is nowhere longer, in units: its bytes, and a part of a unit at either end.
SPAN_UNITS_MAX = CHUNK_BYTES_MAX // ADDRESS_UNIT + 1
# By the number of units: which of the sizes is the least that holds them.
_SIZE_OF = tuple(
    next((size for size, most in enumerate(_SIZE_UNITS) if units <= most), len(_SIZE_UNITS) - 1)
    for units in range(SPAN_UNITS_MAX + 1)
)
_FLOOR_BYTES_MAX, _FLOOR_PART = 1 << 30, 20
_RESERVE_BYTES_MAX, _RESERVE_PART = 256 << 20, 16
# As many chunks as fetches may bring while a batch is evicted.
_RESERVE_BYTES_MIN = 4 * CHUNK_BYTES_MAX


class Part(enum.Enum):
    """Which chunks the hand ends."""

    TRIAL = TRIAL
    MAIN = MAIN


def is_held(state: int) -> bool:
    return bool(state & _HELD)


def _any_of(states: Iterator[int]) -> re.Pattern[bytes]:
    return re.compile(b"[%s]" % b"".join(re.escape(bytes([state])) for state in states))


_HELD_STATE = _any_of(state for state in range(256) if is_held(state))
_NOT_HELD = bytes(state for state in range(256) if not is_held(state))


def arrived(state: int, length: int, *, is_shared: bool) -> int:
    """The state of a unit where a chunk of ``length`` bytes has come that was not held."""
    kind = PROVEN if NONE < state <= GHOST else FRESH
    return kind | (SHARED if is_shared else 0) | _SIZE_OF[-(-length // ADDRESS_UNIT)] << _SIZE_SHIFT


def used(state: int) -> int:
    """The state of a held chunk that was asked for."""
    kind = state & _KIND
    if kind in (FRESH, TRIAL):
        return PROVEN | (state & ~_KIND)
    return state + 1 if MAIN <= kind < _MAIN_LAST else state


def units_of(state: int) -> int:
    """About how many units a held chunk takes."""
    return _SIZE_UNITS[state >> _SIZE_SHIFT]


class Recent:
    """Which chunks were asked for lately: among the last ``window_bytes`` of different ones, or twice as many."""

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._bytes = 0

    def note(self, unit: int, length: int) -> bool:
        """Whether the chunk that begins there was not among them; now it is."""
        if unit in self._now:
            return False
        is_new = unit not in self._before
        if self._bytes + length > self._window_bytes:
            self._before, self._now, self._bytes = self._now, set(), 0
        self._now.add(unit)
        self._bytes += length
        return is_new


def part_to_evict(held_units: int, main_units: int) -> Part:
    return Part.MAIN if main_units * 10 > held_units * 9 else Part.TRIAL


def _passed(part: Part) -> bytes:
    """What the hand makes of each state that it passes over."""
    table = bytearray(range(256))
    for rest in _REST:
        table[FRESH | rest], table[PROVEN | rest] = TRIAL | rest, MAIN | rest
        if part is Part.TRIAL:
            table[TRIAL | rest] = GHOST
        else:
            table[MAIN | rest] = NONE
            for kind in range(MAIN + 1, _MAIN_LAST + 1):
                table[kind | rest] = (kind - 1) | rest
    if part is Part.TRIAL:
        for ghost in range(1, GHOST + 1):
            table[ghost] = ghost - 1
    return bytes(table)


_PASSED = {part: _passed(part) for part in Part}
_VICTIM = {part: _any_of(part.value | rest for rest in _REST) for part in Part}


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass over some units comes to: their new ``states`` (as many as were passed over), the indexes where
    chunks go, how many units are held and in the main part afterwards (without those that the hand would have ended if
    they might go), and how many more of both than before."""

    states: bytes
    victims: list[int]
    held_units: int
    main_units: int
    held_change: int
    main_change: int


def pass_over(window: bytes, part: Part, wanted_units: int, is_pinned: Callable[[int], bool]) -> Pass:
    """Let the hand pass over the states in ``window`` until chunks of some ``wanted_units`` go. ``is_pinned(index)``:
    whether a chunk may not go."""
    victims: list[int] = []
    spared: list[int] = []
    stop, freed = len(window), 0
    for found in _VICTIM[part].finditer(window):
        if freed >= wanted_units:
            stop = found.start()
            break
        if is_pinned(found.start()):
            spared.append(found.start())
            continue
        victims.append(found.start())
        freed += units_of(window[found.start()])
    states = bytearray(window[:stop].translate(_PASSED[part]))
    for index in spared:
        states[index] = window[index]
    held_units, main_units = _units_in(states)
    held_before, main_before = _units_in(window[:stop])
    changes = (held_units - held_before, main_units - main_before)
    # What stays in a part does not speak for it: the other part would never be looked at, and nothing ever go.
    stays = sum(units_of(window[index]) for index in spared)
    held_units -= stays
    main_units -= stays if part is Part.MAIN else 0
    return Pass(bytes(states), victims, held_units, main_units, *changes)


def _units_in(states: bytes | bytearray) -> tuple[int, int]:
    """About how many units are held, and in the main part."""
    held = main = 0
    for state, count in Counter(states.translate(None, _NOT_HELD)).items():
        held += units_of(state) * count
        if state & _KIND >= MAIN:
            main += units_of(state) * count
    return held, main


def held_in(window: bytes) -> Iterator[int]:
    """The indexes where held chunks begin."""
    return (found.start() for found in _HELD_STATE.finditer(window))


def empty_gaps(window: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Ranges [first, stop) from ``start`` on that no held chunk can reach into, whatever its length."""
    first = start
    for index in held_in(window):
        if index > first:
            yield first, index
        first = max(index + SPAN_UNITS_MAX, start)
    if first < len(window):
        yield first, len(window)


def span(window: bytes, index: int) -> int:
    """How many units a chunk that begins at ``index`` takes at most: up to the next one that is held."""
    following = _HELD_STATE.search(window, index + 1, index + SPAN_UNITS_MAX)
    return (following.start() if following else index + SPAN_UNITS_MAX) - index


def hole_of(around: bytes, index: int, *, is_shared: bool) -> tuple[int, int]:
    """(first, stop) of the units that belong to nothing held when the chunk that began at ``index`` is gone.

    ``around``: the states as they are now, with those of SPAN_UNITS_MAX units before and behind it where there are
    such. Empty where a chunk that is held begins there again. The first unit stays where the chunk before, if it is
    held, may end in it.
    """
    if is_held(around[index]):
        return index, index
    first = index
    if is_shared and _HELD_STATE.search(around, max(index - SPAN_UNITS_MAX, 0), index):
        first += 1
    return first, max(index + span(around, index), first)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cache may take: ``limit_bytes`` (None: no limit of its own), and ``floor_bytes`` of its partition that
    stay free."""

    limit_bytes: int | None = None
    floor_bytes: int = 0

    @property
    def reserve_bytes(self) -> int:
        """What is kept free within the limits, so that what comes finds room while older chunks are evicted."""
        if self.limit_bytes is None:
            return min(_RESERVE_BYTES_MAX, max(self.floor_bytes // _RESERVE_PART, _RESERVE_BYTES_MIN))
        wanted = max(self.limit_bytes // _RESERVE_PART, _RESERVE_BYTES_MIN)
        return min(wanted, _RESERVE_BYTES_MAX, self.limit_bytes // 2)

    def room(self, held_bytes: int, free_bytes: int) -> int:
        """How many bytes may come still."""
        room = free_bytes - self.floor_bytes
        return room if self.limit_bytes is None else min(room, self.limit_bytes - held_bytes)

    def spared_bytes(self, held_bytes: int, free_bytes: int) -> int:
        """How much of what start-ups need first stays whatever else is read: half of what the cache may take beside its
        reserve."""
        return max(held_bytes + self.room(held_bytes, free_bytes) - self.reserve_bytes, 0) // 2

    def limit_bytes_left(self, held_bytes: int) -> float:
        """How many bytes may come within the limit that nothing need go for."""
        return math.inf if self.limit_bytes is None else self.limit_bytes - held_bytes - self.reserve_bytes

    def shortage(self, held_bytes: int, free_bytes: int) -> int:
        """How many bytes must go, so that the reserve is there; 0 while half of it is."""
        room = self.room(held_bytes, free_bytes)
        return 0 if room >= self.reserve_bytes // 2 else min(self.reserve_bytes - room, held_bytes)


def floor_bytes(partition_bytes: int) -> int:
    """What always stays free of a partition: 1 GiB, of a small one a twentieth."""
    return min(_FLOOR_BYTES_MAX, partition_bytes // _FLOOR_PART)
