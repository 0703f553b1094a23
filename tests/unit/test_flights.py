"""How the number of requests under way follows what the store says."""

from __future__ import annotations

from synclib.core.flights import Flights


def test_it_rises_by_one_a_round_to_the_most() -> None:
    flights = Flights(2, 5)
    seen = []
    for _ in range(20):
        flights.landed(is_pushed_back=False)
        seen.append(flights.limit)
    assert seen[:6] == [2, 3, 3, 3, 4, 4]
    assert seen[-1] == 5


def test_it_halves_and_never_stops() -> None:
    flights = Flights(8, 8)
    for expected in (4, 2, 1, 1):
        flights.landed(is_pushed_back=True)
        assert flights.limit == expected
    flights.landed(is_pushed_back=False)
    assert flights.limit == 2


def test_what_memory_allows_is_a_bound() -> None:
    assert Flights(8, 3).limit == 3
