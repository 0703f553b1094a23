"""Which runs are merged: the chain stays short, and what is merged follows what is published, whatever the budget."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synclib.core.leveling import FAN_OUT, PUT_OFF, Merge, plan_merge
from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS

_MIB = 1 << 20
_BUDGET = 64 * _MIB
_HOUR_NS = 3600 * 10**9
# Of a run whatever it holds, and of each of its entries.
_RUN_BYTES, _ENTRY_BYTES = 400, 33
_LEVELS_OF_DIFFS = len(LEVELS) - 1
# Of diff3s there may be a few more, each three times the next.
_RUNS_MAX = 1 + _LEVELS_OF_DIFFS * (FAN_OUT - 1) + 4
_RUNS_MAX_PUT_OFF = 1 + _LEVELS_OF_DIFFS * (PUT_OFF * FAN_OUT - 1) + 4


def ref(level: str, first: int, last: int, entries: int = 10, at_ns: int = 0, size: int | None = None) -> RunRef:
    size = _RUN_BYTES + _ENTRY_BYTES * entries if size is None else size
    return RunRef(level, first, last, bytes(16), size, 50, bytes(32), entries, 0, at_ns)


@dataclass
class Life:
    """What became of a chain: its longest state, and bytes published and merged."""

    longest: int = 0
    published: int = 0
    written: int = 0


def live(
    snap: int, diffs: Iterable[int], budget: int | None, *, has_overlap: bool = False, step_ns: int = 0
) -> tuple[Life, list[RunRef]]:
    """A chain over a snap of so many entries, with a diff of so many a publish. ``has_overlap``: all that is published
    replaces what the snap has."""
    life, now_ns = Life(), 0
    runs = [ref("snap", 1, 1, snap)]
    for seq, entries in enumerate(diffs, 2):
        now_ns += step_ns
        runs.append(ref("diff1", seq, seq, entries, now_ns))
        life.published += runs[-1].object_bytes
        while (chosen := plan_merge(runs, now_ns, budget)) is not None:
            inputs = runs[chosen.first : chosen.stop]
            assert len(inputs) > 1
            assert chosen.input_bytes == sum(run.object_bytes for run in inputs)
            held = sum(run.entry_count for run in inputs)
            if has_overlap:
                held = min(held, snap)
            made = ref(
                chosen.level,
                inputs[0].seq_first,
                inputs[-1].seq_last,
                held,
                min(run.created_at_ns for run in inputs),
            )
            if chosen.level == "snap":
                # Never for less than a fixed share of new entries.
                assert FAN_OUT * sum(run.entry_count for run in inputs[1:]) >= inputs[0].entry_count
            runs[chosen.first : chosen.stop] = [made]
            life.written += made.object_bytes
        assert [run.seq_first for run in runs[1:]] == [run.seq_last + 1 for run in runs[:-1]]
        levels = [LEVELS.index(run.level) for run in runs]
        assert levels == sorted(levels, reverse=True)
        life.longest = max(life.longest, len(runs))
    return life, runs


def _of_all_sizes(count: int) -> list[int]:
    random_ = random.Random(7)
    return [1 + int(random_.paretovariate(0.6)) % 5_000_000 for _ in range(count)]


@pytest.mark.parametrize(
    ("snap", "diffs", "has_overlap", "step_ns"),
    [
        pytest.param(10, [1] * 5000, False, 0, id="a small dataset"),
        pytest.param(100_000, [1000] * 5000, True, 0, id="all inside the budget"),
        pytest.param(10_000_000, [1] * 5000, False, 0, id="one path at a time of 10 million"),
        pytest.param(10_000_000, [1] * 3000, True, 25 * _HOUR_NS, id="one path a day"),
        pytest.param(10_000_000, [100] * 5000, False, 0, id="a hundred paths at a time"),
        pytest.param(10_000_000, [30_000] * 5000, True, _HOUR_NS, id="diff2s over the budget"),
        pytest.param(10_000_000, [500_000] * 3000, True, _HOUR_NS, id="eight diff1s over the budget"),
        pytest.param(10_000_000, [2_500_000] * 1000, True, 0, id="each diff1 over the budget"),
        pytest.param(10_000_000, _of_all_sizes(5000), True, 0, id="diffs of all sizes"),
        pytest.param(10**9, [300_000] * 3000, True, 0, id="a billion entries"),
        pytest.param(10**9, [2_500_000] * 2000, True, 0, id="each diff1 over the budget, of a billion"),
    ],
)
@pytest.mark.parametrize("budget", [None, _BUDGET, 1])
def test_a_chain_stays_short_for_ever_and_cheap(
    snap: int, diffs: list[int], has_overlap: bool, step_ns: int, budget: int | None
) -> None:
    life, _ = live(snap, diffs, budget, has_overlap=has_overlap, step_ns=step_ns)
    assert life.longest <= (_RUNS_MAX if budget is None else _RUNS_MAX_PUT_OFF)
    # How often a byte that is published is written anew: once a level, and for its share of the snaps.
    assert life.written <= (_LEVELS_OF_DIFFS + FAN_OUT) * life.published


@given(
    st.integers(1, 10**8),
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 10**7)), min_size=1, max_size=8),
    st.sampled_from([None, _BUDGET, 1]),
    st.booleans(),
    st.sampled_from([0, _HOUR_NS, 30 * _HOUR_NS]),
)
@settings(deadline=None, max_examples=40)
def test_whatever_is_published_the_chain_is_short(
    snap: int, phases: list[tuple[int, int]], budget: int | None, has_overlap: bool, step_ns: int
) -> None:
    diffs = [entries for count, entries in phases for _ in range(count)]
    life, runs = live(snap, diffs, budget, has_overlap=has_overlap, step_ns=step_ns)
    assert life.longest <= (_RUNS_MAX if budget is None else _RUNS_MAX_PUT_OFF)
    assert life.written <= len(LEVELS) * FAN_OUT * (life.published + runs[0].object_bytes)


def test_a_merge_over_the_budget_is_put_off_only_so_long() -> None:
    """Diffs of 10 MB over a snap of 33 GB, and a budget of 64 MiB."""
    runs = [ref("snap", 1, 1, 10**9)]
    for seq in range(2, 2 + PUT_OFF * FAN_OUT - 1):
        runs.append(ref("diff1", seq, seq, 300_000))
        assert plan_merge(runs, 0, _BUDGET) is None
    runs.append(ref("diff1", len(runs) + 1, len(runs) + 1, 300_000))
    # Then the oldest eight: the smallest merge that helps.
    assert plan_merge(runs, 0, _BUDGET) == Merge(
        1, 1 + FAN_OUT, "diff2", sum(run.object_bytes for run in runs[1 : 1 + FAN_OUT])
    )


def test_diff3s_over_a_large_snap_become_one_diff3() -> None:
    diff3s = [ref("diff3", seq, seq, 1000) for seq in range(2, 2 + FAN_OUT)]
    found = plan_merge([ref("snap", 1, 1, 10**7), *diff3s], 0, _BUDGET)
    assert found is not None
    assert (found.first, found.stop, found.level) == (1, 1 + FAN_OUT, "diff3")
    # Over a snap of which they are an eighth they become a new one.
    found = plan_merge([ref("snap", 1, 1, 1000 * FAN_OUT * FAN_OUT), *diff3s], 0, _BUDGET)
    assert found == Merge(0, 1 + FAN_OUT, "snap", found.input_bytes if found else 0)


def test_a_diff3_that_is_much_larger_than_all_newer_ones_is_left_alone() -> None:
    sizes = [10**6, 10**5, *[100] * (FAN_OUT - 2)]
    diff3s = [ref("diff3", seq, seq, size) for seq, size in enumerate(sizes, 2)]
    found = plan_merge([ref("snap", 1, 1, 10**9), *diff3s], 0, _BUDGET)
    assert found is not None
    assert (found.first, found.stop, found.level) == (3, 1 + FAN_OUT, "diff3")
    falling = [ref("diff3", seq, seq, 10 ** (FAN_OUT - seq)) for seq in range(FAN_OUT)]
    assert plan_merge([ref("snap", 1, 1, 10**10), *falling], 0) is None


def test_diffs_that_are_as_much_as_the_snap_are_merged_into_it_whatever_it_reads() -> None:
    snap = ref("snap", 1, 1, 8_000_000)
    diffs = [ref("diff1", seq, seq, 10**6) for seq in range(2, 10)]
    assert plan_merge([snap, *diffs[:-1]], 0, _BUDGET) is None
    found = plan_merge([snap, *diffs], 0, _BUDGET)
    assert found is not None
    assert (found.first, found.stop, found.level) == (0, 9, "snap")


def test_age_and_budget() -> None:
    day = 24 * _HOUR_NS
    runs = [ref("snap", 1, 1, 1000, size=100), *(ref("diff1", seq, seq, size=100) for seq in (2, 3))]
    assert plan_merge(runs, day - 1) is None
    assert plan_merge(runs, day + 1) == Merge(1, 3, "diff2", 200)
    many = [ref("snap", 1, 1, 150, size=100), *(ref("diff1", seq, seq, size=100) for seq in range(2, 12))]
    assert plan_merge(many, 0) == Merge(0, 11, "snap", 1100)
    assert plan_merge(many, 0, budget_bytes=1050) == Merge(1, 11, "diff2", 1000)
    assert plan_merge(many, 0, budget_bytes=850) == Merge(1, 9, "diff2", 800)
    assert plan_merge(many, 0, budget_bytes=500) is None
