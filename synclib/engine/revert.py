"""Revert: a new seq with an old one's content. Entries only: packs are not touched."""

from __future__ import annotations

from dataclasses import dataclass

from synclib.core.entry import Entry, Kind
from synclib.core.manifest import Head, Manifest
from synclib.core.pack import PackInfo
from synclib.engine.commit import Laid, head_with, manifest_of
from synclib.engine.head_swap import update_head
from synclib.engine.host import Host
from synclib.engine.lease import Holder, Moved, intent
from synclib.errors import Conflict
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.run_cache import RunCache

_ATTEMPTS = 10


@dataclass
class RevertResult:
    """The head's manifest, and what differs from what it was."""

    manifest: Manifest
    added: int = 0
    changed: int = 0
    deleted: int = 0
    is_new: bool = False


def revert(dataset: Dataset, host: Host, seq: int, *, is_dry_run: bool = False) -> RevertResult:
    """Make a new seq with the content of ``seq``; none when the head has it already. Missing for a seq that is gone."""
    cache = RunCache(host.dataset_cache(dataset.store.url, dataset.root) / "run", dataset.store)
    with cache.in_use():
        for _ in range(_ATTEMPTS):
            head = dataset.read_head()
            target = dataset.manifest_at(seq)
            dataset.check_condemned(head, target)
            holder = intent(dataset, host)
            try:
                if not is_dry_run:
                    holder.take(head, head.manifest.seq, target.seq)
                return _Reversion(dataset, host, cache, holder, target).run(is_dry_run=is_dry_run)
            except Moved:
                continue
            finally:
                holder.end()
    raise Conflict(f"{dataset.name} is being collected", hint="run it again when that is done")


class _Reversion:
    def __init__(self, dataset: Dataset, host: Host, cache: RunCache, holder: Holder, target: Manifest) -> None:
        self._dataset, self._host, self._cache, self._holder, self._target = dataset, host, cache, holder, target
        self._laid: Laid | None = None

    def run(self, *, is_dry_run: bool) -> RevertResult:
        if is_dry_run:
            head = self._dataset.read_head()
            return self._result(head.manifest, self._lay(head))
        done = update_head(self._dataset, self._host, self._change, check=self._holder.check)
        assert self._laid is not None
        manifest = self._dataset.read_head().manifest if done is None else done.manifest
        return self._result(manifest, self._laid)

    def _result(self, manifest: Manifest, laid: Laid) -> RevertResult:
        return RevertResult(manifest, laid.added, laid.changed, laid.deleted, laid.is_new)

    def _change(self, head: HeadState) -> Head | None:
        """The head with the difference to the target laid on it; None when there is no difference."""
        self._laid = laid = self._lay(head)
        if not laid.is_new:
            return None
        parts = laid.builder.finish()
        ref = parts.ref(self._holder.mint(), self._host.clock.wall_ns())
        path = self._cache.keep(ref.key(self._dataset.root), parts.read())
        parts.close()
        self._dataset.store.put(ref.key(self._dataset.root), path)
        manifest = manifest_of(head, laid, ref, self._host)
        return head_with(head, manifest, laid)

    def _lay(self, head: HeadState) -> Laid:
        root = self._dataset.root
        for manifest in (head.manifest, self._target):
            self._cache.fill(root, manifest.runs)
        new, old = (Chain.of(self._cache, root, manifest.runs) for manifest in (head.manifest, self._target))
        packs = {row[0]: PackInfo(*row) for chain in (new, old) for run in chain.runs for row in run.tail.packs}
        # Nothing was scanned: what is racy is marked so already.
        laid = Laid(root, head, 1 << 64, packs, keeps_addresses=True)
        for before, after in changes(new, old):
            if after is None:
                assert before is not None
                after = Entry(before.directory, before.name, Kind.TOMBSTONE)  # noqa: PLW2901 - what is laid
            laid.lay(after, new, new)
        return laid
