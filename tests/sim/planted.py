"""How a planted bug is looked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.sim.faults import Fault
from tests.sim.world import Plan, simulate

# What finds a bug within forty finds it within these, whatever a change does to the order of steps.
_SEEDS = 150
_FLEET = Plan(0, 40, frozenset(), publishers=2, nodes=1, readers=0)


def found(says: str, *faults: Fault, first: int = 0, seeds: int = _SEEDS, **fleet: Any) -> None:
    """Some seed must end in a violation that says this. ``first``: where to begin, so that it is found soon."""
    others = set()
    for seed in range(first, first + seeds):
        outcome = simulate(replace(_FLEET, seed=seed, faults=frozenset(faults), **fleet))
        if outcome.violation is not None:
            if says in str(outcome.violation):
                return
            others.add(str(outcome.violation).splitlines()[0])
    pytest.fail(f"{seeds} seeds did not find it; they found {others}")
