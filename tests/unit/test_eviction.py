"""The rule by which a cache lets chunks go: what is read once never pushes out what is read again."""

from __future__ import annotations

import random

import pytest

from synclib.core import eviction
from synclib.core.eviction import (
    FRESH,
    GHOST,
    MAIN,
    NONE,
    PROVEN,
    SHARED,
    SPAN_UNITS_MAX,
    TRIAL,
    Limits,
    Part,
    Recent,
    arrived,
    empty_gaps,
    hole_of,
    is_held,
    part_to_evict,
    pass_over,
    used,
)


class Model:
    """A cache of chunks of one unit each, evicted by the rule."""

    def __init__(self, units: int, room: int) -> None:
        self.states = bytearray(units)
        self.room, self.at = room, 0
        self.count = 0
        self.round = self.seen = (0, 0)  # held, and in the main part, as the hand counts them
        self.stays: set[int] = set()

    def held(self) -> set[int]:
        return {unit for unit, state in enumerate(self.states) if is_held(state)}

    def read(self, unit: int) -> None:
        if is_held(self.states[unit]):
            self.states[unit] = used(self.states[unit])
            return
        for _ in range(100_000):
            if self.count < self.room:
                break
            self.evict()
        assert self.count < self.room
        self.count += 1
        self.states[unit] = arrived(self.states[unit], 4096, is_shared=False)

    def evict(self) -> None:
        if self.at >= len(self.states):
            self.at, self.round, self.seen = 0, self.seen, (0, 0)
        at, (held, main) = self.at, self.round
        done = pass_over(bytes(self.states[at:]), part_to_evict(held, main), 1, lambda index: at + index in self.stays)
        self.states[at : at + len(done.states)] = done.states
        self.at += len(done.states)
        self.count -= len(done.victims)
        self.round = held + done.held_change, main + done.main_change
        self.seen = self.seen[0] + done.held_units, self.seen[1] + done.main_units


def test_a_scan_leaves_what_is_read_again() -> None:
    cache, hot, chance = Model(5000, 100), range(40), random.Random(1)
    for _ in range(6):
        for unit in hot:
            cache.read(unit)
        for unit in chance.sample(range(1000, 5000), 60):
            cache.read(unit)
    assert set(hot) <= cache.held()
    for unit in range(1000, 5000):  # forty times what there is room for
        cache.read(unit)
    assert set(hot) <= cache.held()


def test_reads_that_follow_each_other_closely_are_one() -> None:
    recent = Recent(3000)
    answers = [recent.note(unit, 1000) for unit in (1, 1, 2, 1, 3, 2, 4, 1)]
    assert answers == [True, False, True, False, True, False, True, False]
    for unit in range(10, 20):
        assert recent.note(unit, 1000)
    assert recent.note(1, 1000)


def test_what_comes_back_soon_needs_no_second_trial() -> None:
    assert arrived(GHOST, 1, is_shared=True) == PROVEN | SHARED
    window = bytes([TRIAL])
    for _ in range(GHOST + 1):
        window = pass_over(window, Part.TRIAL, 1, lambda _: False).states
    assert window == bytes([NONE])
    assert arrived(window[0], 4096, is_shared=False) == FRESH


def test_a_main_part_that_is_read_no_more_gives_way() -> None:
    cache = Model(2000, 100)
    for _ in range(10):
        for unit in range(95):
            cache.read(unit)
        cache.read(1000 + _)
    chance = random.Random(2)
    for _ in range(20_000):
        cache.read(chance.randrange(500, 590))
    assert len(set(range(500, 590)) & cache.held()) >= 85


@pytest.mark.parametrize("part", list(Part))
def test_a_pass_ends_where_enough_goes_and_spares_what_is_pinned(part: Part) -> None:
    window = bytes([part.value, 0, 0, part.value | SHARED, 0, part.value, part.value])
    done = pass_over(window, part, 5, lambda index: index == 0)
    assert done.victims == [3, 5, 6]
    assert done.states[0] == part.value
    assert (done.held_units, done.main_units) == (0, 0)
    done = pass_over(window, part, 2, lambda _: False)
    assert (done.victims, len(done.states)) == ([0, 3], 5)


def test_what_stays_does_not_keep_the_main_part_from_giving_way() -> None:
    """All of it came once; the main part is read no more, and what is new is read again and again."""
    cache = Model(1000, room=100)
    for unit in range(40):
        cache.read(unit)
    for _ in range(3):
        for unit in range(100, 160):
            cache.read(unit)
    cache.stays = set(range(40))
    for _ in range(6):
        for unit in range(500, 550):
            cache.read(unit)
            cache.read(unit)
    assert cache.stays <= cache.held()
    assert len(cache.held() & set(range(500, 550))) >= 45


def test_counts_of_a_pass() -> None:
    large = arrived(NONE, 100_000, is_shared=False) ^ FRESH  # 32 units
    window = bytes([FRESH, TRIAL | large, PROVEN | large, MAIN, MAIN + 3 | SHARED, GHOST])
    done = pass_over(window, Part.TRIAL, 1 << 30, lambda _: False)
    assert (done.held_units, done.main_units, done.held_change, done.main_change) == (35, 34, -32, 32)
    done = pass_over(window, Part.MAIN, 1 << 30, lambda _: False)
    assert (done.held_units, done.main_units, done.held_change, done.main_change) == (66, 33, -1, 31)
    assert done.victims == [3]


@pytest.mark.parametrize("length", [1, 4096, 4097, 20_000, 100_000, 400_000, 1 << 20])
def test_a_chunks_state_tells_about_its_size(length: int) -> None:
    units = -(-length // 4096)
    state = arrived(NONE, length, is_shared=True)
    assert units <= eviction.units_of(state) < 3 * units
    for kind in range(FRESH, MAIN + 4):
        changed = used(state & ~15 | kind)
        assert (eviction.units_of(changed), changed & SHARED) == (eviction.units_of(state), SHARED)


def test_a_hole_leaves_what_is_held_beside_it() -> None:
    states = bytearray(700)
    states[100], states[105], states[110] = TRIAL, TRIAL | SHARED, TRIAL | SHARED
    gone = bytearray(states)
    gone[105] = NONE
    # Unit 105 has the end of the chunk before; unit 110 has the end of this one, and stays with the next.
    assert hole_of(bytes(gone), 105, is_shared=True) == (106, 110)
    gone[100] = NONE
    assert hole_of(bytes(gone), 105, is_shared=True) == (105, 110)
    gone[110] = NONE
    assert hole_of(bytes(gone), 105, is_shared=True) == (105, 105 + SPAN_UNITS_MAX)
    assert hole_of(bytes(states), 105, is_shared=True) == (105, 105)


def test_gaps_are_out_of_the_reach_of_every_chunk() -> None:
    states = bytearray(1000)
    states[10] = states[500] = TRIAL
    assert list(empty_gaps(bytes(states), 0)) == [
        (0, 10),
        (10 + SPAN_UNITS_MAX, 500),
        (500 + SPAN_UNITS_MAX, 1000),
    ]
    assert list(empty_gaps(bytes(states), 100)) == [(10 + SPAN_UNITS_MAX, 500), (500 + SPAN_UNITS_MAX, 1000)]


def test_limits() -> None:
    limits = Limits(100 << 20, 1 << 30)
    assert limits.room(held_bytes=90 << 20, free_bytes=1 << 40) == 10 << 20
    assert limits.room(held_bytes=0, free_bytes=1 << 30) == 0
    assert limits.shortage(held_bytes=90 << 20, free_bytes=1 << 40) == 0
    assert limits.shortage(held_bytes=100 << 20, free_bytes=1 << 40) == limits.reserve_bytes
    assert limits.shortage(held_bytes=1 << 20, free_bytes=0) == 1 << 20
    assert Limits(None, 0).shortage(held_bytes=1 << 40, free_bytes=1 << 40) == 0
    assert limits.spared_bytes(held_bytes=90 << 20, free_bytes=1 << 40) * 2 == (100 << 20) - limits.reserve_bytes
    assert limits.spared_bytes(held_bytes=20 << 20, free_bytes=1 << 30) * 2 == (20 << 20) - limits.reserve_bytes
    assert limits.spared_bytes(held_bytes=1 << 20, free_bytes=0) == 0
    assert eviction.floor_bytes(1 << 40) == 1 << 30
    assert eviction.floor_bytes(20 << 20) == 1 << 20
