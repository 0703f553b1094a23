"""When a supervisor starts, stops and kills, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synclib.core.supervise import PAUSE_FIRST_S, PAUSE_MAX_S, STEADY_S, Action, Supervision, next_pause


def test_pauses_double_to_a_bound_and_begin_anew() -> None:
    pauses = [0.0]
    for _ in range(8):
        pauses.append(next_pause(pauses[-1], 1.0))
    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert next_pause(PAUSE_MAX_S, STEADY_S) == PAUSE_FIRST_S


def test_order_of_start_and_stop() -> None:
    decide = Supervision([10, 20])
    assert decide.step(0) == [(Action.START, 0), (Action.START, 1)]
    assert decide.due_at == math.inf
    decide.stop()
    assert decide.step(5) == [(Action.TERMINATE, 1)]
    assert decide.step(5) == []
    assert decide.due_at == 25
    assert decide.ended(6, 1) is None
    assert decide.step(6) == [(Action.TERMINATE, 0)]
    assert decide.step(16) == [(Action.KILL, 0)]
    assert decide.step(99) == []
    assert not decide.is_done
    decide.ended(17, 0)
    assert decide.is_done


def test_one_that_ends_is_started_again_and_the_others_are_left_alone() -> None:
    decide = Supervision([1, 1])
    decide.step(0)
    assert decide.ended(3, 0) == 0.5
    assert decide.due_at == 3.5
    assert decide.step(3.4) == []
    assert decide.step(3.5) == [(Action.START, 0)]
    assert decide.ended(4, 0) == 1.0
    decide.stop()
    # Who waits for its next start has nothing to stop.
    assert decide.step(4) == [(Action.TERMINATE, 1)]
    decide.ended(4, 1)
    assert decide.is_done


def test_what_does_not_run_cannot_end() -> None:
    decide = Supervision([1])
    with pytest.raises(ValueError, match="did not run"):
        decide.ended(0, 0)
    assert decide.step(0) == [(Action.START, 0)]


@given(st.lists(st.tuples(st.sampled_from(["end", "tick", "stop", "kill"]), st.integers(0, 2), st.floats(0.01, 40))))
def test_whatever_happens_nothing_runs_twice_and_all_ends(events: list[tuple[str, int, float]]) -> None:
    """Played against a model of three processes that obey nothing but SIGKILL."""
    decide = Supervision([5, 5, 5])
    running: set[int] = set()
    now = 0.0

    def do(actions: list[tuple[Action, int]]) -> None:
        for action, index in actions:
            if action is Action.START:
                assert index not in running
                assert not decide.is_stopping
                running.add(index)
            else:
                assert index in running
                if action is Action.KILL:
                    running.remove(index)
                    assert decide.ended(now, index) is None

    do(decide.step(now))
    for what, index, passed in events:
        now += passed
        if what == "end" and index in running:
            running.remove(index)
            decide.ended(now, index)
        elif what == "stop":
            decide.stop()
        elif what == "kill":
            do(decide.kill())
        do(decide.step(now))
    decide.stop()
    for _ in range(8):
        now = max(now, decide.due_at if decide.due_at < math.inf else now)
        do(decide.step(now))
    assert decide.is_done
    assert not running
