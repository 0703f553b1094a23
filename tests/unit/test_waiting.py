"""Waiting: how often is looked, for whom, and how it ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.errors import Corrupt, Missing, Unavailable
from synclib.volume.base import Snapshot, SnapshotState
from synclib.volume.pace import Pace
from synclib.volume.waiting import POLL_MAX_S, snapshot_is_completed, wait_until, wait_until_gone


class Service:
    """Snapshots that are completed each at its time; some looks fail."""

    def __init__(self, clock: ManualClock, done_at: dict[str, float]) -> None:
        self.clock = clock
        self.done_at = done_at
        self.failed_at = float("inf")
        self.fails = 0
        self.looks: list[tuple[float, list[str]]] = []

    def look(self, ids: Sequence[str]) -> list[Snapshot]:
        now = self.clock.monotonic()
        self.looks.append((now, list(ids)))
        if self.fails:
            self.fails -= 1
            raise Unavailable("slow down")
        return [Snapshot(each, 1, self._state(each, now), 0) for each in ids if each in self.done_at]

    def _state(self, snapshot_id: str, now: float) -> SnapshotState:
        if now >= self.failed_at:
            return SnapshotState.ERROR
        return SnapshotState.COMPLETED if now >= self.done_at[snapshot_id] else SnapshotState.PENDING

    def wait(self, ids: list[str], deadline_s: float = 60) -> list[str]:
        found = wait_until(
            self.look,
            ids,
            snapshot_is_completed,
            clock=self.clock,
            entropy=SeededEntropy(1),
            deadline_s=deadline_s,
        )
        return [snapshot.id for snapshot in found]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_only_those_are_asked_for_that_are_not_done(clock: ManualClock) -> None:
    service = Service(clock, {"a": 0, "b": 5, "c": 0})
    assert service.wait(["c", "b", "a"]) == ["c", "b", "a"]
    assert service.looks[0][1] == ["c", "b", "a"]
    assert {tuple(ids) for _, ids in service.looks[1:]} == {("b",)}


def test_first_looks_are_close_and_later_ones_are_not_far(clock: ManualClock) -> None:
    service = Service(clock, {"a": 30})
    service.wait(["a"])
    times = [at for at, _ in service.looks]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] < 0.35
    assert max(gaps) <= POLL_MAX_S * 1.25
    assert len(set(gaps[4:])) > 5  # not all fleets at the same moment
    assert len(gaps) < 25


def test_nothing_to_wait_for_asks_nobody(clock: ManualClock) -> None:
    service = Service(clock, {})
    assert service.wait([]) == []
    assert service.looks == []


def test_a_service_that_is_away_for_a_while_is_waited_for(clock: ManualClock) -> None:
    service = Service(clock, {"a": 0})
    service.fails = 5
    assert service.wait(["a"]) == ["a"]
    service.fails = 1000
    with pytest.raises(Unavailable, match="slow down"):
        service.wait(["a"])


def test_ends_with_who_is_late_or_not_there(clock: ManualClock) -> None:
    service = Service(clock, {"a": 100})
    with pytest.raises(Unavailable, match="a did not get there"):
        service.wait(["a"], deadline_s=10)
    assert clock.monotonic() == pytest.approx(10)
    with pytest.raises(Missing, match="there is no b"):
        service.wait(["a", "b"], deadline_s=10)


def test_failed_one_ends_the_wait_at_once(clock: ManualClock) -> None:
    service = Service(clock, {"a": 100})
    service.failed_at = 3
    with pytest.raises(Corrupt):
        service.wait(["a"])
    assert clock.monotonic() < 6


def test_gone_is_gone(clock: ManualClock) -> None:
    there = {"a": 4.0, "b": 9.0}

    def look(ids: Sequence[str]) -> list[Snapshot]:
        return [Snapshot(each, 1, SnapshotState.COMPLETED, 0) for each in ids if clock.monotonic() < there[each]]

    wait_until_gone(look, ["a", "b"], clock=clock, entropy=SeededEntropy(1), deadline_s=60)
    assert 9 <= clock.monotonic() < 12
    there["a"] = 1e9
    with pytest.raises(Unavailable, match="still there"):
        wait_until_gone(look, ["a"], clock=clock, entropy=SeededEntropy(1), deadline_s=60)


def test_pace_is_kept_and_not_saved_up(clock: ManualClock) -> None:
    pace = Pace(10, clock)
    for _ in range(21):
        pace.wait()
    assert clock.monotonic() == pytest.approx(2)
    clock.advance(100)
    began = clock.monotonic()
    for _ in range(11):
        pace.wait()
    assert clock.monotonic() - began == pytest.approx(1)
