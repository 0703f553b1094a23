"""Compaction: runs of a chain merged into fewer, packs untouched, content the same (I4).

Any node may do it; the head's compare-and-swap decides. Runs that were merged away stay, for the seqs that name them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from synclib.core.leveling import Merge, merge_all, plan_merge
from synclib.core.manifest import Head, Manifest, RunRef, encode_manifest
from synclib.core.pack import PackInfo
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.disk.faults import disk_errors
from synclib.engine.head_swap import update_head
from synclib.engine.host import Host, Progress
from synclib.engine.lease import Holder, Moved, intent
from synclib.errors import BoxlinkError, Corrupt
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.merge import merge
from synclib.lazy.run_cache import RunCache

_ROUNDS = 20

Choose = Callable[[list[RunRef], int], Merge | None]


@dataclass
class CompactResult:
    """What was merged: (the runs, the run they became, or None in a dry run), in that order."""

    manifest: Manifest
    merges: list[tuple[list[RunRef], RunRef | None]] = field(default_factory=list)


def compact(
    dataset: Dataset,
    host: Host,
    progress: Progress,
    *,
    is_full: bool = False,
    budget_bytes: int | None = None,
    is_dry_run: bool = False,
    head: HeadState | None = None,
) -> CompactResult:
    """Merge what is due, or with ``is_full`` the whole chain into one snap. ``budget_bytes`` bounds what is read.

    ``head``: one that was just read or written; it is not read again where nothing is due.
    """

    def choose(runs: list[RunRef], now_ns: int) -> Merge | None:
        return merge_all(runs) if is_full else plan_merge(runs, now_ns, budget_bytes)

    cache = RunCache(host.dataset_cache(dataset.store.url, dataset.root) / "run", dataset.store)
    with disk_errors(), cache.in_use():
        return _Compaction(dataset, host, cache, progress).run(
            choose, head or dataset.read_head(), is_dry_run=is_dry_run
        )


class _Compaction:
    def __init__(self, dataset: Dataset, host: Host, cache: RunCache, progress: Progress) -> None:
        self._dataset, self._host, self._cache, self._progress = dataset, host, cache, progress

    def run(self, choose: Choose, head: HeadState, *, is_dry_run: bool) -> CompactResult:
        result = CompactResult(head.manifest)
        for _ in range(_ROUNDS):
            chosen = choose(head.manifest.runs, self._host.clock.wall_ns())
            if chosen is None:
                return result
            inputs = head.manifest.runs[chosen.first : chosen.stop]
            if is_dry_run:
                result.merges.append((inputs, None))
                return result
            holder = intent(self._dataset, self._host)
            with contextlib.suppress(Moved):
                try:
                    holder.take(head, head.manifest.seq)
                    done = self._merge(head, inputs, chosen.level, holder)
                finally:
                    holder.end()
                if done is not None:
                    result.merges.append((inputs, done[1]))
            head = self._dataset.read_head()
            result.manifest = head.manifest
        return result

    def _merge(
        self, head: HeadState, inputs: list[RunRef], level: str, holder: Holder
    ) -> tuple[HeadState, RunRef] | None:
        """Merge and commit; None when others changed the chain so that it no longer fits."""
        dataset = self._dataset
        ref = self._build(head, inputs, level, holder)
        tried: set[str] = set()
        state = update_head(
            dataset, self._host, lambda state: with_merged(state, inputs, ref), check=holder.check, tried=tried
        )
        if state is None:
            if not tried:
                with contextlib.suppress(BoxlinkError):
                    dataset.store.delete(ref.key(dataset.root))
            return None
        return state, ref

    def _build(self, head: HeadState, inputs: list[RunRef], level: str, holder: Holder) -> RunRef:
        dataset = self._dataset
        self._cache.fill(dataset.root, inputs)
        packs: dict[bytes, PackInfo] = {}
        builder = RunBuilder(level, inputs[0].seq_first, inputs[-1].seq_last, PackTable())
        is_snap = inputs[0].seq_first == 1
        merge(Chain.of(self._cache, dataset.root, inputs).runs, builder, packs, is_snap=is_snap)
        parts = builder.finish()
        # The earliest: it is the age of the oldest record in it.
        ref = parts.ref(holder.mint(), min(run.created_at_ns for run in inputs))
        if len(inputs) == len(head.manifest.runs) and ref.entry_count != head.manifest.entry_count:
            raise Corrupt("the merged chain does not have the entries that its manifest names", dataset=dataset.name)
        path = self._cache.keep(ref.key(dataset.root), parts.read())
        parts.close()
        dataset.store.put(ref.key(dataset.root), path)
        self._progress("merged", sum(run.object_bytes for run in inputs), 0)
        return ref


def with_merged(state: HeadState, inputs: list[RunRef], merged: RunRef) -> Head | None:
    """The head with a run in the place of those it was merged from; None when they are no longer there."""
    runs = state.manifest.runs
    first = next((index for index, run in enumerate(runs) if run.ulid == inputs[0].ulid), None)
    if first is None or runs[first : first + len(inputs)] != inputs:
        return None
    gone = {run.ulid for run in inputs}
    manifest = msgspec.structs.replace(
        state.manifest,
        runs=[*runs[:first], merged, *runs[first + len(inputs) :]],
        attachments=[item for item in state.manifest.attachments if item.run not in gone],
    )
    return msgspec.structs.replace(state.head, manifest=encode_manifest(manifest))
