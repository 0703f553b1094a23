"""What must be so of a store when all is over: nothing that is kept is lost, and nothing is left that nobody needs."""

from __future__ import annotations

from pathlib import Path

from synclib.clock import ManualClock, SeededEntropy
from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.host import Host, no_progress
from synclib.engine.objects import list_manifests, list_packs, list_runs
from synclib.engine.reach import Reach
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.dataset import Dataset
from tests.sim.history import ROOT, History
from tests.sim.scheduler import ActorClock, Violation

_LEASE_S = 90_000.0


def audit(history: History, now: float, place: Path) -> None:
    """Collect twice, each time when all leases are over; then look."""
    if not history.last:
        return
    dataset = Dataset(history.memory, ROOT)
    clock = ManualClock(ActorClock.EPOCH_NS + int(now * 1e9))
    host = Host("audit", clock, SeededEntropy(0), place / "state", place / "cache")
    try:
        for _ in range(2):
            clock.advance(_LEASE_S)
            collect(dataset, host, Retention(), None, no_progress)
        _check_seqs(history, dataset)
        _check_nothing_else(dataset)
    except BoxlinkError as error:
        raise Violation(f"I8: what is left cannot be collected: {error.kind}: {error.message} {error.key}") from error


def _check_seqs(history: History, dataset: Dataset) -> None:
    """Each seq is wholly there, and what it was (I4), or it is gone."""
    present = {info.key for info in history.memory.list(ROOT)}
    for seq in history.seqs:
        try:
            manifest = dataset.manifest_at(seq.number)
        except Missing:
            if history.keeping.is_alive(seq.number):
                raise Violation(f"I3: seq {seq.number} is gone, nobody dropped it") from None
            continue
        history.check(manifest, seq.tree)
        if lacking := history.version_of(manifest).keys - present:
            raise Violation(f"I3: seq {seq.number} is half there: {min(lacking)} is gone")


def _check_nothing_else(dataset: Dataset) -> None:
    """No run, pack or manifest that nothing leads to (I8)."""
    head = dataset.read_head()
    reach = Reach(dataset, None)
    reached = reach.closure(item for found in reach.history(head).values() for item in found)
    listed = [*list_manifests(dataset), *list_runs(dataset), *list_packs(dataset)]
    if left := [item.key for item in listed if item.id not in reached]:
        raise Violation(f"I3: nothing leads to {left[0]}, but two collections have left it")
    if head.head.condemned:
        raise Violation(f"I3: {len(head.head.condemned)} objects are still condemned")
