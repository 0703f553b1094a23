"""What the seqs of a dataset reach: manifests, runs, packs, attachments, by their 16-byte ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import Executor

from synclib.core.manifest import Manifest, RunRef, encode_manifest, former_manifests, manifest_digest, manifest_id
from synclib.core.names import parse_manifest_key
from synclib.core.retention import Retention, kept_seqs
from synclib.engine.objects import list_manifests
from synclib.errors import Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState, preference
from synclib.lazy.run_reader import StoreRuns

_TAILS_AT_ONCE = 64


class Reach:
    """Follows manifests and tails; what was read once is not read again. ``executor``: threads to read side by side."""

    def __init__(self, dataset: Dataset, executor: Executor | None) -> None:
        self._dataset, self._executor = dataset, executor
        self._manifests: dict[str, Manifest] = {}
        self._packs: dict[bytes, list[bytes]] = {}  # of each run

    def history(self, head: HeadState) -> dict[int, list[tuple[bytes, Manifest]]]:
        """By seq: (id, manifest) of each manifest, those in the head among them, that with the shortest chain first."""
        keys = [item.key for item in list_manifests(self._dataset)]
        self._read([key for key in keys if key not in self._manifests])
        # Another collector may have taken some away since they were listed.
        keys = [key for key in keys if key in self._manifests]
        found: dict[int, dict[bytes, Manifest]] = {}
        for key in keys:
            seq, digest = parse_manifest_key(self._dataset.root, key)
            found.setdefault(seq, {})[manifest_id(digest)] = self._manifests[key]
        for name, manifest in former_manifests(head.head):
            found.setdefault(manifest.seq, {})[name] = manifest
        newest = head.manifest
        found.setdefault(newest.seq, {})[manifest_id(manifest_digest(encode_manifest(newest)))] = newest
        return {seq: sorted(by_id.items(), key=lambda item: preference(item[1])) for seq, by_id in found.items()}

    def _read(self, keys: list[str]) -> None:
        found = map(self._try, keys) if self._executor is None else self._executor.map(self._try, keys)
        self._manifests.update((key, read) for key, read in zip(keys, found, strict=True) if read is not None)

    def _try(self, key: str) -> Manifest | None:
        try:
            return self._dataset.read_manifest_object(key)
        except Missing:
            return None

    def closure(self, manifests: Iterable[tuple[bytes, Manifest]], *, may_lack: bool = False) -> set[bytes]:
        """The ids of manifests and of all runs, packs and attachments that they reach. A run that is gone raises
        Missing, unless it may be."""
        reached: set[bytes] = set()
        runs: dict[bytes, RunRef] = {}
        for name, manifest in manifests:
            reached.add(name)
            reached.update(item.ulid for item in manifest.attachments)
            runs.update((run.ulid, run) for run in manifest.runs)
        lacking = [run for ulid, run in runs.items() if ulid not in self._packs]
        for first in range(0, len(lacking), _TAILS_AT_ONCE):
            self._open(lacking[first : first + _TAILS_AT_ONCE], may_lack=may_lack)
        for ulid in runs:
            reached.add(ulid)
            reached.update(self._packs.get(ulid, ()))
        return reached

    def _open(self, refs: list[RunRef], *, may_lack: bool) -> None:
        if may_lack:
            # All at once; one by one only where something does lack.
            try:
                self._open(refs, may_lack=False)
            except Missing:
                for ref in refs:
                    with contextlib.suppress(Missing):
                        self._open([ref], may_lack=False)
            return
        chain = Chain.of(StoreRuns(self._dataset.store, self._executor), self._dataset.root, refs)
        if self._executor is not None:
            chain.open()
        for run in chain.runs:
            self._packs[run.ref.ulid] = [row[0] for row in run.tail.packs]


def kept_of(history: dict[int, list[tuple[bytes, Manifest]]], retention: Retention) -> set[int]:
    """The seqs that retention keeps, whoever else needs more."""
    return kept_seqs(((seq, found[0][1].published_at_ns) for seq, found in history.items()), retention)


def kept(
    history: dict[int, list[tuple[bytes, Manifest]]],
    head: HeadState,
    retention: Retention,
    tagged: set[int],
    leased: set[int],
) -> list[tuple[bytes, Manifest]]:
    """The manifests that must stay: all of the seqs that somebody holds, the best one of those that are kept."""
    stays: list[tuple[bytes, Manifest]] = []
    kept_now = kept_of(history, retention) | tagged | {head.manifest.seq}
    for seq, found in history.items():
        if retention.keeps_all or seq in leased:
            stays += found
        elif seq == head.manifest.seq:
            stays += [item for item in found if item[1] == head.manifest]
        elif seq in kept_now:
            stays.append(found[0])
    return stays
