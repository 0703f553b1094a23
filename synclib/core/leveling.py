"""Which runs of a chain to merge next: diff1s into a diff2, diff2s into a diff3, diff3s into one or into a new snap.

Levels as in a leveled log-structured merge tree (O'Neil and others, "The Log-Structured Merge-Tree", Acta Informatica
33, 1996) with fan-out 8. A snap is written anew only for a fixed share of new entries, so that what is merged in all
follows what is published, however large the dataset; until then diff3s are merged by size, as in the logarithmic method
(Bentley and Saxe, "Decomposable Searching Problems", Journal of Algorithms 1, 1980). Reasons and bounds:
docs/decisions/0014-a-budget-puts-off.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
# How far a merge over the budget is put off: to twice the runs in a level, twice the share of the snap. A reader then
# asks for some 45 tails side by side, still one round trip and far below one manifest's bounds; more would only save
# what has to be merged in the end.
PUT_OFF = 2
# A diff3 is merged with newer ones that together have at least a third of its bytes. What is merged so grows by a third
# each time, so that no byte is merged often; what is left is each three times the next, so that there are few.
_SIZE_RATIO = 3

_SNAP = LEVELS.index("snap")
_TOP = _SNAP - 1


@dataclass(frozen=True, slots=True)
class Merge:
    """``runs[first:stop]`` become one run of a level."""

    first: int
    stop: int
    level: str
    input_bytes: int


def plan_merge(runs: Sequence[RunRef], now_ns: int, budget_bytes: int | None = None) -> Merge | None:
    """The merge to do now; None when there is none.

    One that was put off long enough comes first, whatever it reads: all who look at the same chain choose the same, and
    no smaller merge takes away under it what it merges. Else one that is due and reads no more than the budget (None:
    any), the largest first: it spares the others.
    """
    if len(runs) < 2:
        return None
    overdue = next(_overdue(runs), None)
    if overdue is not None and budget_bytes is not None:
        return overdue
    fitting = (merge for merge in _due(runs, now_ns) if budget_bytes is None or merge.input_bytes <= budget_bytes)
    return min(fitting, key=lambda merge: (merge.first, -merge.stop), default=None)


def merge_all(runs: Sequence[RunRef]) -> Merge | None:
    """The merge of a whole chain into one snap; None when it is one already."""
    return _merge(runs, 0, len(runs)) if len(runs) > 1 else None


def _overdue(runs: Sequence[RunRef]) -> Iterator[Merge]:
    """Merges that were put off long enough: into the snap, else the smallest of each level."""
    if _has_share(runs, SNAP_RATIO / PUT_OFF):
        yield _merge(runs, 0, len(runs))
    for level in reversed(range(_SNAP)):
        first, last = _span(runs, level)
        if last - first >= PUT_OFF * FAN_OUT:
            found = _by_size(runs, first, last) if level == _TOP else _merge(runs, first, first + FAN_OUT)
            if found is not None:
                yield found


def _due(runs: Sequence[RunRef], now_ns: int) -> Iterator[Merge]:
    """Merges that spare readers something, more than one of a level where they differ in size."""
    if _has_share(runs, SNAP_RATIO):
        yield _merge(runs, 0, len(runs))
    for level in range(_SNAP):
        first, last = _span(runs, level)
        is_full = last - first >= FAN_OUT
        if level == _TOP:
            if is_full and _has_share(runs, FAN_OUT):
                yield _merge(runs, 0, len(runs))
            found = _by_size(runs, first, last) if is_full else None
            if found is not None:
                yield found
                # The newer and smaller ones join it.
                yield _merge(runs, found.first, len(runs))
            continue
        is_old = any(now_ns - run.created_at_ns > AGE_MAX_NS[level] for run in runs[first:last])
        if is_full or (is_old and last - first > 1):
            yield _merge(runs, first, len(runs))
        if is_full:
            yield _merge(runs, first, first + FAN_OUT)


def _has_share(runs: Sequence[RunRef], ratio: float) -> bool:
    """Whether there are many diffs that together have at least one ``ratio``-th of the snap's entries."""
    diffs = runs[1:]
    return len(diffs) >= RATIO_RUNS_MIN and ratio * sum(run.entry_count for run in diffs) >= runs[0].entry_count


def _span(runs: Sequence[RunRef], level: int) -> tuple[int, int]:
    """(first, stop) of the runs of a level. The runs of a chain go down from level to level."""
    levels = [LEVELS.index(run.level) for run in runs]
    first = next((index for index, found in enumerate(levels) if found <= level), len(runs))
    stop = next((index for index, found in enumerate(levels) if found < level), len(runs))
    return max(1, first), max(1, first, stop)


def _by_size(runs: Sequence[RunRef], first: int, stop: int) -> Merge | None:
    """The newest of ``runs[first:stop]`` as one, with as many of those before them as are not much larger; None where
    each is much larger than the next."""
    newest = stop - 1
    total = runs[newest].object_bytes
    while newest > first and runs[newest - 1].object_bytes <= _SIZE_RATIO * total:
        newest -= 1
        total += runs[newest].object_bytes
    return _merge(runs, newest, stop) if stop - newest > 1 else None


def _merge(runs: Sequence[RunRef], first: int, stop: int) -> Merge:
    chosen = runs[first:stop]
    highest = max(LEVELS.index(run.level) for run in chosen)
    level = "snap" if chosen[0].seq_first == 1 else LEVELS[min(highest + 1, _TOP)]
    return Merge(first, stop, level, sum(run.object_bytes for run in chosen))
