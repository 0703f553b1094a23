"""What is fetched in the background, how much at once, and when it holds back."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from synclib.core.entry import ChunkRef
from synclib.core.extent_map import Extent
from synclib.core.hydration import (
    BYTES_IN_FLIGHT_MAX,
    FLIGHTS_MAX,
    RANGE_BYTES_MAX,
    RANGE_BYTES_MIN,
    Eta,
    Pace,
    Streams,
    Work,
    cut,
    p95,
    rest_units,
    trace_units,
)


def extent(number: int, offset: int, size: int = 20_000, pack: bytes = b"p" * 16) -> Extent:
    return Extent(4096 * number, ChunkRef(bytes(32), pack, offset, size, size, 0))


@given(
    st.lists(st.tuples(st.integers(0, 60_000_000), st.integers(1, 1 << 20), st.sampled_from([b"a", b"b"])), max_size=60)
)
def test_every_extent_is_in_one_range_that_is_not_too_long(places: list[tuple[int, int, bytes]]) -> None:
    found = [extent(n, offset, size, pack * 16) for n, (offset, size, pack) in enumerate(places, 1)]
    groups = cut(found, RANGE_BYTES_MAX)
    assert sorted(e.position for group in groups for e in group) == [e.position for e in found]
    for group in groups:
        assert len({e.chunk.pack for e in group}) == 1
        first = min(e.chunk.offset for e in group)
        assert len(group) == 1 or max(e.chunk.offset + e.chunk.stored_bytes for e in group) - first <= RANGE_BYTES_MAX


def test_the_largest_of_the_rest_is_first_and_the_earliest_of_a_trace() -> None:
    alone, together = extent(1, 50_000_000), [extent(n, n * 20_000) for n in range(2, 30)]
    assert rest_units([alone, *together], RANGE_BYTES_MAX)[-1].extents == together
    units = trace_units([(5.0, together[0]), (1.0, alone), (3.0, together[1]), (9.0, alone)])
    assert [(unit.due, len(unit.extents)) for unit in units] == [(1.0, 1), (3.0, 2)]


def test_who_reads_on_has_more_and_more_ahead_and_nobody_else_has() -> None:
    streams = Streams()
    step = 128 << 10
    for place in (0, 10 * step, 33 * step, 77 * step):  # small files, and what the kernel reads ahead of them
        assert streams.read(place, place + step) is None
        assert streams.read(place + step, place + 2 * step) is None
    asked, first = [], 400 * step
    stop = first
    for _ in range(400):
        found = streams.read(stop, stop + step)
        stop += step
        if found:
            asked.append(found)
            assert found[1] - stop <= min(stop - first, Streams.MOST_BYTES) + Streams.WINDOW_BYTES
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(asked))
    assert asked[0][0] == first + Streams.WINDOW_BYTES
    assert asked[-1][1] - stop > Streams.MOST_BYTES // 2 - Streams.WINDOW_BYTES


def test_a_large_read_asks_for_all_that_comes_after_it() -> None:
    streams = Streams()
    window = Streams.WINDOW_BYTES
    ranges = [found for n in range(30) if (found := streams.read(n * 3 * window, (n + 1) * 3 * window))]
    assert ranges[0][0] <= 3 * window
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(ranges))


@given(st.randoms(use_true_random=False), st.integers(2, 32))
def test_readers_of_the_files_of_a_folder_read_on_together(chance: random.Random, readers: int) -> None:
    """Each takes the next file; who is quick is some files ahead."""
    size, count = 20 << 10, 400
    order = sorted(range(count), key=lambda n: n + chance.random() * readers)
    streams = Streams()
    asked: list[tuple[int, int]] = []
    for done, n in enumerate(order):
        found = streams.read(n * size, (n + 1) * size)
        if found:
            asked.append(found)
            assert found[1] <= (done + readers) * size + Streams.MOST_BYTES
    brought = {position for first, last in asked for position in range(first // size, last // size)}
    assert len(brought.intersection(range(count // 2, count))) > count // 2 * 0.9


def begin(pace: Pace, now: float, work: Work = Work.REST, size: int = 1) -> bool:
    if pace.delay(now, work, size):
        return False
    pace.began(now, size)
    return True


def ready() -> Pace:
    pace = Pace()
    pace.is_starting = False
    return pace


def test_flights_and_bytes_are_bounded() -> None:
    pace = ready()
    count = 0
    while begin(pace, 1.0):
        count += 1
    assert 1 < count < FLIGHTS_MAX
    pace = ready()
    total = 0
    while begin(pace, 1.0, Work.TRACE, 8 << 20):
        total += 8 << 20
    assert total == BYTES_IN_FLIGHT_MAX


def test_a_rate_is_kept_and_ranges_are_short_then() -> None:
    pace = Pace(rate=1_000_000)
    pace.is_starting = False
    now = sent = 0.0
    while now < 100:
        if begin(pace, now, Work.REST, 500_000):
            sent += 500_000
            pace.landed(now, 500_000)
        now += 0.05
    assert 95e6 < sent < 102e6
    assert pace.range_bytes_max == 1_000_000
    assert Pace(rate=10).range_bytes_max == RANGE_BYTES_MIN
    assert Pace().range_bytes_max == RANGE_BYTES_MAX


def test_a_store_that_pushes_back_is_asked_less_and_later() -> None:
    pace = ready()
    waits = []
    now = 0.0
    for _ in range(12):
        assert begin(pace, now)
        pace.landed(now, 1)
        pace.pushed_back(now)
        assert pace.why(now) == "store"
        delay = pace.delay(now, Work.REST, 1)
        assert pace.delay(now, Work.TRACE, 1) == delay
        waits.append(delay)
        now += delay
    assert waits == sorted(waits)
    assert waits[0] < 1 < waits[-1] <= 30
    count = 0
    while begin(pace, now):
        count += 1
    assert count == 1
    # Those that were under way together count once.
    pace = ready()
    for _ in range(20):
        pace.pushed_back(5.0)
    assert pace.delay(5.0, Work.REST, 1) <= 1


def test_the_rest_waits_for_calm_while_a_start_up_is_under_way() -> None:
    pace = Pace()
    assert begin(pace, 100.0)
    pace.demanded(100.0)
    assert not begin(pace, 100.5)
    assert pace.why(100.5) == "start-up"
    assert begin(pace, 100.5, Work.TRACE)
    assert begin(pace, 102.0)
    pace.demanded(102.0)
    pace.is_starting = False
    assert begin(pace, 102.0)


def test_the_rest_pauses_when_readers_wait_longer_than_they_do_alone() -> None:
    pace = ready()
    for number in range(20):
        pace.served(float(number), 0.04)
    assert begin(pace, 30.0)
    for _ in range(20):
        pace.served(30.1, 0.06)
    assert pace.pauses == 0
    for _ in range(20):
        pace.served(30.2, 0.2)
    assert pace.pauses == 1
    assert pace.why(30.3) == "demand"
    assert not begin(pace, 30.3)
    assert begin(pace, 30.3, Work.TRACE)
    pace.landed(30.4, 1)
    assert begin(pace, 31.5)


def test_who_was_never_seen_alone_is_listened_to() -> None:
    pace = ready()
    assert begin(pace, 1.0)
    for _ in range(8):
        pace.served(1.0, 0.1)
    assert pace.why(1.1) == "demand"
    pace.landed(1.2, 1)
    for number in range(8):
        pace.served(1.4 + number / 100, 0.1)
    assert begin(pace, 2.5)
    for _ in range(30):
        pace.served(2.6, 0.11)
    assert pace.pauses == 1


def test_readers_whose_waits_nobody_notices_do_not_count() -> None:
    pace = ready()
    for number in range(20):
        pace.served(float(number), 0.0001)
    assert begin(pace, 30.0)
    for _ in range(60):
        pace.served(30.1, 0.01)
    assert pace.pauses == 0


def test_a_full_disk_is_left_alone() -> None:
    pace = ready()
    pace.disk_is_full(1.0)
    assert not begin(pace, 1.5, Work.TRACE)
    assert pace.why(1.5) == "disk"
    assert begin(pace, 20.0)


def test_when_all_will_be_here_follows_from_how_it_goes() -> None:
    eta = Eta()
    assert eta.seconds(0, 100) is None
    for number in range(100):
        eta.note(float(number), number * 10)
    assert eta.seconds(990, 2000) == 101.0
    assert eta.seconds(2000, 2000) == 0.0
    for number in range(100, 200):
        eta.note(float(number), 990)
    assert eta.seconds(990, 2000) is None


def test_p95() -> None:
    assert p95([3.0]) == 3.0
    assert p95(range(100)) == 95


def test_what_nobody_asked_for_stops_at_the_limit_and_what_is_read_goes_on() -> None:
    pace = Pace()
    pace.is_starting = False
    pace.limit_is_reached(100.0)
    assert [pace.delay(100.0, work, 1000) == 0.0 for work in (Work.TRACE, Work.AHEAD, Work.REST)] == [True, True, False]
    assert pace.why(100.0) == "limit"


def test_while_others_wait_for_the_disk_only_the_rest_waits() -> None:
    pace = Pace()
    pace.is_starting = False
    pace.disk_is_busy(100.0)
    assert pace.delay(100.0, Work.TRACE, 1000) == 0.0
    assert pace.delay(100.0, Work.AHEAD, 1000) == 0.0
    assert pace.delay(100.0, Work.REST, 1000) > 0.0
    assert pace.why(100.0) == "disk pressure"
    assert pace.delay(103.0, Work.REST, 1000) == 0.0
