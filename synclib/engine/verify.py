"""Verify: read a dataset's structure, or every byte, against the digests that the head leads to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef, Kind
from synclib.core.manifest import Manifest, RunRef, former_manifests
from synclib.core.pack import PackInfo, parse_tail
from synclib.core.parents import with_parents
from synclib.core.run import HEADER_BYTES, check_header
from synclib.core.treehash import TreeHash
from synclib.disk.journal import Journal
from synclib.engine.host import Connect, Progress
from synclib.engine.verify_job import VerifyJob, check_pack, run_verify_job
from synclib.engine.verify_places import Places
from synclib.engine.workers import run_jobs, worker_count
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.lazy.attachment import check_attachment
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_reader import RunReader, StoreRuns
from synclib.store.meter import Meter


@dataclass(frozen=True)
class VerifyOptions:
    """``start`` makes the executor that packs are verified in: worker processes, or a cluster's; None: this process.
    ``journal``: where to note the packs that were found whole, so that a run that is broken off goes on. ``is_all``:
    also the runs and packs that other kept seqs reach."""

    is_data: bool = False
    start: Callable[[], Executor] | None = None
    journal: Path | None = None
    is_all: bool = False


@dataclass
class VerifyResult:
    """What was read, and what was found: (key, message) of each damaged object, a path where one is known."""

    seq: int = 0
    digest: str = ""
    files: int = 0
    plain_bytes: int = 0
    seqs: list[int] = field(default_factory=list)  # whose runs, packs and attachments were looked at
    runs: int = 0
    packs: int = 0
    attachments: int = 0
    passed_over: int = 0  # packs that an earlier run, which was broken off, found whole
    read_bytes: int = 0
    damage: list[tuple[str, str]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)  # what worker processes asked of the store


def verify(
    dataset: Dataset, manifest: Manifest, connect: Connect | None, options: VerifyOptions, progress: Progress
) -> VerifyResult:
    """Check that a seq is whole: its runs, its tree's digest, its packs' slot tables; with ``is_data`` each chunk.

    Damage is collected, not raised: one broken pack does not hide another.
    """
    return _Verification(dataset, manifest, connect, options, progress).run()


class _Verification:
    def __init__(
        self,
        dataset: Dataset,
        manifest: Manifest,
        connect: Connect | None,
        options: VerifyOptions,
        progress: Progress,
    ) -> None:
        self._dataset, self._manifest, self._options, self._progress = dataset, manifest, options, progress
        self._connect = connect or Connect(dataset.store.url)
        self._result = VerifyResult(manifest.seq, manifest.digest, manifest.file_count, manifest.plain_bytes)
        self._result.seqs = [manifest.seq]
        self._chain = Chain.of(StoreRuns(dataset.store), dataset.root, manifest.runs)
        self._damaged: set[bytes] = set()
        self._infos: dict[bytes, PackInfo] = {}

    def run(self) -> VerifyResult:
        with self._collecting(""):
            self._check_runs()
        if not self._result.damage:
            self._check_attachments()
            self._check_packs()
            with self._collecting(""):
                self._check_entries()
        return self._result

    @contextlib.contextmanager
    def _collecting(self, key: str) -> Iterator[None]:
        """What the body finds damaged or missing goes into the result."""
        try:
            yield
        except (Corrupt, Missing) as error:
            self._result.damage.append((error.key or key, error.message))

    def _pack_key(self, ulid: bytes) -> str:
        return names.pack_key(self._dataset.root, ulid_text(ulid))

    def _other_runs(self) -> list[RunReader]:
        """The runs that only other kept seqs have."""
        own = {run.ref.ulid for run in self._chain.runs}
        others: dict[bytes, RunRef] = {}
        seqs = set(self._result.seqs)
        for manifest in self._manifests() if self._options.is_all else ():
            others.update((ref.ulid, ref) for ref in manifest.runs if ref.ulid not in own)
            seqs.add(manifest.seq)
        self._result.seqs = sorted(seqs)
        return Chain.of(StoreRuns(self._dataset.store), self._dataset.root, others.values()).runs

    def _manifests(self) -> Iterator[Manifest]:
        """All that stand: those in the head, then those that are objects."""
        head = self._dataset.read_head()
        yield head.manifest
        for _, manifest in former_manifests(head.head):
            yield manifest
        for _, key in self._dataset.manifests():
            with self._collecting(key):
                yield self._dataset.read_manifest_object(key)

    def _check_runs(self) -> None:
        for run in [*self._chain.runs, *self._other_runs()]:
            try:
                (header,) = self._dataset.store.get_ranges(run.key, [(0, HEADER_BYTES)])
                check_header(header, run.tail)
                self._infos.update((row[0], PackInfo(*row)) for row in run.tail.packs)
                for raw in run.raw_blocks():
                    run.decode(raw)
            except BoxlinkError as error:
                error.key = error.key or run.key
                raise
            self._result.runs += 1
            self._result.read_bytes += run.ref.object_bytes

    def _check_attachments(self) -> None:
        """Image and map, each piece and page."""
        store = self._dataset.store
        wanted = {item.ulid: item for item in self._manifest.attachments if item.kind in names.ATTACHMENTS}
        for manifest in self._manifests() if self._options.is_all else ():
            wanted.update((item.ulid, item) for item in manifest.attachments if item.kind in names.ATTACHMENTS)
        for item in wanted.values():
            key = item.key(self._dataset.root)
            with self._collecting(key):
                check_attachment(item, lambda start, stop, key=key: store.get_ranges(key, [(start, stop)])[0])  # type: ignore[misc]
                self._result.read_bytes += item.object_bytes
                self._result.attachments += 1

    def _check_packs(self) -> None:
        options, result = self._options, self._result
        journal = None if options.journal is None else Journal(options.journal)
        before = set() if journal is None else journal.names & self._infos.keys()
        result.packs = result.passed_over = len(before)
        is_done = False
        try:
            jobs = (
                VerifyJob(self._connect, self._dataset.root, info.as_tuple(), options.is_data)
                for info in self._infos.values()
                if info.ulid not in before
            )
            store = self._dataset.store
            checks = run_jobs(
                jobs, lambda job: check_pack(job, store), run_verify_job, options.start, 2 * worker_count()
            )
            for check in checks:
                result.meter.add(check.meter)
                result.read_bytes += check.read_bytes
                if check.damage:
                    self._damaged.add(check.ulid)
                    result.damage.append((self._pack_key(check.ulid), check.damage))
                else:
                    result.packs += 1
                    if journal is not None:
                        journal.add(check.ulid)
                self._progress("verified", result.packs, len(self._infos))
            is_done = True
        finally:
            if journal is not None:
                journal.close(is_done=is_done)

    def _check_entries(self) -> None:
        """The tree's digest, and that every file's chunks are slots of the packs it names."""
        tree = TreeHash()
        files = size = 0
        with contextlib.closing(Places()) as places:
            for entry in with_parents(self._chain.entries()):
                tree.add(entry)
                files += entry.kind == Kind.FILE
                size += entry.size
                places.note(entry)
            for chunk in places.wrong(self._slots):
                path = self._path_of(chunk)
                raise Corrupt(
                    f"{path} names a chunk that its pack does not have", key=self._pack_key(chunk.pack), path=path
                )
        manifest = self._manifest
        if (tree.hexdigest(), files, size) != (manifest.digest, manifest.file_count, manifest.plain_bytes):
            raise Corrupt("the tree does not have the digest that the manifest names")

    def _path_of(self, chunk: ChunkRef) -> str:
        """The first file that names a chunk."""
        return next(os.fsdecode(entry.path) for entry in self._chain.entries() if chunk in entry.chunks)

    def _slots(self, ulid: bytes) -> Iterator[ChunkRef] | None:
        """A pack's chunks; None for a pack whose damage is told already."""
        info = self._infos.get(ulid)
        if info is None:
            raise Corrupt("an entry names a pack that its run does not list", key=self._pack_key(ulid))
        if ulid in self._damaged:
            return None
        try:
            tail = self._dataset.store.get_suffix(self._pack_key(ulid), info.tail_bytes)
            return parse_tail(ulid, tail.data, tail.size, info.slots_digest)
        except (Corrupt, Missing):
            return None
