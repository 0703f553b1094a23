"""A far store: the same seed gives the same delays, a line has a width, and what comes is what the store has."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.errors import Ambiguous, Unavailable
from synclib.store.memory import MemoryStore
from synclib.store.outcome import NotApplied
from synclib.store.retry import RetryStore
from tools.bench.distance import NEAR, Distance, Fates, Line, Turnstile, delay_s, round_trips
from tools.bench.far_store import FarStore

FAR = Distance()


def filled() -> MemoryStore:
    store = MemoryStore()
    store.put("a", bytes(range(256)) * 4000)
    return store


def test_delays_are_log_normal() -> None:
    assert delay_s(FAR, 0.5) == pytest.approx(FAR.p50_s)
    assert delay_s(FAR, 0.99) == pytest.approx(FAR.p99_s)
    assert delay_s(NEAR, 0.99) == 0
    fates = Fates(FAR, 7)
    drawn = sorted(fates.draw("a").first_byte_s for _ in range(4000))
    assert drawn[2000] == pytest.approx(FAR.p50_s, rel=0.1)
    assert drawn[3960] == pytest.approx(FAR.p99_s, rel=0.2)


def test_the_same_seed_gives_the_same_delays_in_whatever_order() -> None:
    first, second, other = Fates(FAR, 1), Fates(FAR, 1), Fates(FAR, 2)
    words = [f"{number % 50}" for number in range(200)]
    drawn: dict[str, list[object]] = {}
    for word in words:
        drawn.setdefault(word, []).append(first.draw(word))
    again: dict[str, list[object]] = {}
    for word in sorted(words):
        again.setdefault(word, []).append(second.draw(word))
    assert again == drawn
    assert other.draw("1") != drawn["1"][0]
    assert len(set(drawn["1"])) > 1


def test_resets_have_their_share() -> None:
    fates = Fates(Distance(reset_share=0.2), 3)
    broken = [fate for fate in (fates.draw("a") for _ in range(1000)) if fate.breaks_at is not None]
    assert 150 < len(broken) < 250
    assert all(0 <= fate.breaks_at < 1 for fate in broken if fate.breaks_at is not None)


def test_a_line_is_shared_and_a_turnstile_refuses() -> None:
    line = Line(1000)
    assert [line.send(0, 500), line.send(0, 500), line.send(10, 100)] == [0.5, 1.0, 10.1]
    assert Line(0).send(3, 10**9) == 3
    turnstile = Turnstile(10)
    assert sum(turnstile.admits(0) for _ in range(30)) == 10
    assert sum(turnstile.admits(0.5) for _ in range(30)) == 5
    assert sum(turnstile.admits(100) for _ in range(30)) == 10
    assert all(Turnstile(0).admits(0) for _ in range(100))


@pytest.mark.parametrize(
    ("spans", "count"),
    [
        ([], 0),
        ([(0, 1), (0, 1), (0.5, 2)], 1),
        ([(0, 1), (1, 2), (2, 3)], 3),
        ([(0, 10), (0, 1), (1, 2), (2, 3)], 3),
        ([(0, 3), (1, 2), (4, 5)], 2),
    ],
)
def test_round_trips_are_what_comes_one_after_the_other(spans: list[tuple[float, float]], count: int) -> None:
    assert round_trips(spans) == count


def test_a_call_takes_as_long_as_its_slowest_range() -> None:
    clock = ManualClock()
    store = FarStore(filled(), Distance(connection_bytes_per_s=1_000_000), clock, 1)
    ranges = [(number * 100, number * 100 + 50) for number in range(20)]
    fates = Fates(Distance(), 1)
    slowest = max(fates.draw(f"a {start} {stop}").first_byte_s for start, stop in ranges)
    found = store.get_ranges("a", ranges)
    assert clock.monotonic() == pytest.approx(slowest + 50 / 1e6, abs=1e-4)
    assert found == filled().get_ranges("a", ranges)


def test_a_width_is_of_a_connection_and_of_all() -> None:
    clock = ManualClock()
    narrow = Distance(0, 0, connection_bytes_per_s=100_000, bytes_per_s=150_000)
    FarStore(filled(), narrow, clock, 1).get_ranges("a", [(0, 100_000)])
    assert clock.monotonic() == pytest.approx(1.0)
    FarStore(filled(), narrow, clock, 1).get_ranges("a", [(0, 100_000), (200_000, 300_000)])
    assert clock.monotonic() == pytest.approx(1 + 200 / 150)


def test_what_is_refused_was_not_done_and_a_lost_answer_may_have_been() -> None:
    clock = ManualClock()
    inner = filled()
    store = FarStore(inner, Distance(0, 0, requests_per_s=1), clock, 1)
    store.get_suffix("a", 1)
    with pytest.raises(NotApplied):
        store.put("b", b"x", if_absent=True)
    assert [info.key for info in inner.list("")] == ["a"]
    breaking = RetryStore(FarStore(inner, Distance(0, 0, reset_share=1.0), clock, 1), clock, SeededEntropy(1))
    with pytest.raises(Ambiguous):
        breaking.put("b", b"x", if_absent=True)
    assert [info.key for info in inner.list("")] == ["a", "b"]
    with pytest.raises(Unavailable):
        breaking.get("a", size_max=1 << 20)


def test_threads_get_what_the_store_has() -> None:
    clock, inner = ManualClock(), filled()
    store = FarStore(inner, Distance(bytes_per_s=10_000_000), clock, 1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: store.get_ranges("a", [(at, at + 77)])[0], range(0, 8000, 100)))
    assert found == [inner.get_ranges("a", [(at, at + 77)])[0] for at in range(0, 8000, 100)]
