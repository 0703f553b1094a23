"""Which runs of a chain to merge next: diff1s into a diff2, diff2s into a diff3, diff3s and the snap into a new snap.

Levels as in a leveled log-structured merge tree (O'Neil and others, "The Log-Structured Merge-Tree", Acta Informatica
33, 1996) with fan-out 8: a chain has at most a snap and three times seven diffs, whatever its age.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS

FAN_OUT = 8
# A diff that has waited this long joins its neighbours although they are few, so that what is seldom published does
# not keep a long tail; diff1, diff2.
AGE_MAX_NS = (24 * 3600 * 10**9, 7 * 24 * 3600 * 10**9)
# Diffs that together have half as many entries as the snap cost every reader that much again.
SNAP_RATIO = 2
# Below this a chain is short anyhow.
RATIO_RUNS_MIN = 8

_SNAP = LEVELS.index("snap")


@dataclass(frozen=True, slots=True)
class Merge:
    """``runs[first:stop]`` become one run of a level."""

    first: int
    stop: int
    level: str
    input_bytes: int


def plan_merge(runs: Sequence[RunRef], now_ns: int, budget_bytes: int | None = None) -> Merge | None:
    """The merge that is due and fits the budget; None when there is none. The largest first: it spares the others."""
    due = [merge for merge in _due(runs, now_ns) if merge.stop - merge.first > 1]
    for merge in sorted(due, key=lambda merge: merge.first):
        if budget_bytes is None or merge.input_bytes <= budget_bytes:
            return merge
    return None


def merge_all(runs: Sequence[RunRef]) -> Merge | None:
    """The merge of a whole chain into one snap; None when it is one already."""
    return _merge(runs, 0, len(runs)) if len(runs) > 1 else None


def _due(runs: Sequence[RunRef], now_ns: int) -> list[Merge]:
    if not runs:
        return []
    due: list[Merge] = []
    diffs = runs[1:]
    is_heavy = SNAP_RATIO * sum(run.entry_count for run in diffs) >= runs[0].entry_count
    if is_heavy and len(diffs) >= RATIO_RUNS_MIN and runs[0].seq_first == 1:
        due.append(_merge(runs, 0, len(runs)))
    first = len(runs)
    for level in range(_SNAP):
        # The runs of this level and of those below it, which are newer and join them.
        while first > 0 and LEVELS.index(runs[first - 1].level) <= level:
            first -= 1
        own = [run for run in runs[first:] if LEVELS.index(run.level) == level]
        is_old = level < len(AGE_MAX_NS) and any(now_ns - run.created_at_ns > AGE_MAX_NS[level] for run in own)
        if len(own) >= FAN_OUT or (is_old and len(own) > 1):
            due.append(_merge(runs, 0 if level == _SNAP - 1 else first, len(runs)))
    return due


def _merge(runs: Sequence[RunRef], first: int, stop: int) -> Merge:
    chosen = runs[first:stop]
    highest = max(LEVELS.index(run.level) for run in chosen)
    level = "snap" if chosen[0].seq_first == 1 else LEVELS[min(highest + 1, _SNAP - 1)]
    return Merge(first, stop, level, sum(run.object_bytes for run in chosen))
