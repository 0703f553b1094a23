"""The simulation as it runs with every test: some fixed seeds, some that hypothesis draws."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.faults import Aim, Fault
from tests.sim.scale import TINY
from tests.sim.world import FLEET, Plan, report, simulate

REPOSITORY = Path(__file__).parents[2]


def run(plan: Plan) -> None:
    outcome = simulate(plan)
    if outcome.violation is not None:
        pytest.fail(report(plan, outcome), pytrace=False)


@pytest.mark.parametrize("seed", range(7))
def test_nothing_happens_that_may_never_happen(seed: int) -> None:
    run(replace(FLEET, seed=seed, steps=80))


def test_every_kind_of_fault_at_once() -> None:
    run(replace(FLEET, seed=1, faults=frozenset(Fault)))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    faults=st.frozensets(st.sampled_from(Fault)),
    publishers=st.integers(1, 3),
    nodes=st.integers(0, 2),
    others=st.tuples(*[st.integers(0, 1)] * 5),
)
def test_whatever_is_drawn(
    seed: int, faults: frozenset[Fault], publishers: int, nodes: int, others: tuple[int, ...]
) -> None:
    run(Plan(seed, 30, faults, publishers, nodes, *others))


def test_blocks_are_copied() -> None:
    """What compactions do most with large datasets does occur with these small ones."""
    plan = Plan(0, 40, frozenset(), nodes=1, readers=1, keepers=1, upkeep="compact", scale=TINY)
    copied = 0
    for seed in range(4):
        outcome = simulate(replace(plan, seed=seed))
        assert outcome.violation is None, report(plan, outcome)
        copied += outcome.copied_blocks
    assert copied >= 4


def test_a_replicator_sleeps_before_it_writes_a_manifest() -> None:
    """For days, so that what it names is swept before it comes: that does occur, and does no harm."""
    aim = Aim("replicator", "put", "/manifest/")
    plan = Plan(
        0, 60, frozenset({Fault.STALL}), nodes=0, readers=0, keepers=1, copies=1, upkeep="drop,replicate", aim=aim
    )
    late = 0
    for seed in (3, 4, 5, 6):
        outcome = simulate(replace(plan, seed=seed))
        assert outcome.violation is None, report(plan, outcome)
        late += outcome.late_manifests
    assert late >= 4


def test_the_same_seed_is_the_same_run() -> None:
    plans = [replace(FLEET, seed=seed, steps=40, faults=frozenset(Fault)) for seed in (8, 9, 10)]
    first, second = [simulate(plan) for plan in plans], [simulate(plan) for plan in plans]
    assert [outcome.trace for outcome in first] == [outcome.trace for outcome in second]
    assert any(outcome.kills for outcome in first)
    assert first[0].trace != first[1].trace


def test_the_command_replays_a_run_in_any_process() -> None:
    """Whatever the order of sets and the number of the process are there."""
    plan = replace(FLEET, seed=7, steps=20)
    shown = [
        subprocess.run(
            [sys.executable, *plan.command.split()[1:]],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[0]
        for seed in ("1", "2")
    ]
    assert shown[0] == shown[1]
    assert "trace" in shown[0]
