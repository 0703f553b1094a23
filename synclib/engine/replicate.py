"""Replication: a dataset with its history in another store, usable there at every moment.

Objects are immutable and keep their names, so what is there already is passed over, and a replication that was killed
goes on. The head comes last, by compare-and-swap. Every byte is verified on its way: damage is not copied. An older seq
of which something is not there is left out, and said; what the head needs has to be.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from synclib.clock import ulid_bytes, ulid_text
from synclib.core.manifest import EMPTY, Attachment, Head, Manifest, RunRef, encode_manifest, manifest_digest
from synclib.core.names import ATTACHMENTS, manifest_key, pack_key, pack_prefix, run_prefix, tag_key
from synclib.core.pack import PackInfo, decode_chunk, parse_header, parse_tail
from synclib.core.run import HEADER_BYTES, check_header
from synclib.core.tag import encode_tag
from synclib.engine.head_swap import swap_head, update_head
from synclib.engine.host import Host, Progress
from synclib.engine.lease import Holder, Moved, intent, pin
from synclib.engine.leases import sweeps_under_way
from synclib.engine.left_out import LeftOut, lacking
from synclib.engine.objects import list_attachments, list_manifests, list_packs, list_runs
from synclib.engine.reach import Reach
from synclib.engine.tags import tags
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Missing, Unsupported
from synclib.lazy.attachment import check_attachment
from synclib.lazy.dataset import Dataset, HeadLost, HeadState
from synclib.lazy.run_cache import RunCache
from synclib.lazy.run_reader import Request, RunReader
from synclib.store.base import Buffer

_ATTEMPTS = 10
_KINDS = ("manifests", "runs", "packs", "attachments")
# Packs that are held in memory at once: some 32 MiB each.
_PACKS_AT_ONCE = 4
_READ_BYTES = 8 << 20


@dataclass
class ReplicateResult:
    """The source's head, and what was (or in a dry run would be) copied: (objects, bytes) by kind."""

    manifest: Manifest
    copied: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(_KINDS, (0, 0)))
    tags: int = 0
    is_new: bool = False
    left_out: list[LeftOut] = field(default_factory=list)

    def count(self, kind: str, size: int) -> None:
        objects, total = self.copied[kind]
        self.copied[kind] = (objects + 1, total + size)


def replicate(
    source: Dataset,
    target: Dataset,
    host: Host,
    executor: Executor | None,
    progress: Progress,
    *,
    is_dry_run: bool = False,
) -> ReplicateResult:
    """Bring ``target`` to all that ``source`` has. Conflict when the target has a history of its own.

    ``executor``: threads that copy packs side by side.
    """
    is_gone = False
    for _ in range(_ATTEMPTS):
        holds, claim = pin(source, host), intent(target, host)
        try:
            return _Replication(source, target, host, holds, claim, executor, progress).run(is_dry_run=is_dry_run)
        except Moved:
            continue
        except Missing as error:
            # Once: it was listed, and the source's collector has taken it since. The second time it is left out.
            if is_gone or not _is_part(source, error.key):
                raise
            is_gone = True
        finally:
            holds.end()
            claim.end()
    raise Conflict(f"{source.name} is being collected", hint="run it again when that is done")


def _is_part(dataset: Dataset, key: str) -> bool:
    return key.startswith((run_prefix(dataset.root), pack_prefix(dataset.root)))


class _Replication:
    def __init__(
        self,
        source: Dataset,
        target: Dataset,
        host: Host,
        holds: Holder,
        claim: Holder,
        executor: Executor | None,
        progress: Progress,
    ) -> None:
        self._source, self._target, self._host, self._holds, self._claim = source, target, host, holds, claim
        self._executor, self._progress = executor, progress
        self._reach = Reach(source, executor)
        self._cache = RunCache(host.dataset_cache(source.store.url, source.root) / "run", source.store)
        self._infos: dict[bytes, PackInfo] = {}

    def run(self, *, is_dry_run: bool) -> ReplicateResult:
        head = self._source.read_head()
        if not is_dry_run:
            self._holds.take(head, head.manifest.seq)
        history = self._reach.history(head)
        there = self._read_target()
        self._check_ancestry(there, head, history)
        if not is_dry_run:
            self._claim.take(there, holds_all=True)
            self._check_sweeps(there)
        result = ReplicateResult(head.manifest)
        manifests = self._manifests_to_copy(there, head, history, result)
        with self._cache.in_use():
            runs = self._runs_to_copy(manifests)
            self._copy_packs(result, is_dry_run=is_dry_run)
            self._copy_runs(runs, result, is_dry_run=is_dry_run)
            self._copy_attachments(manifests, result, is_dry_run=is_dry_run)
        self._copy_manifests([manifest for _, manifest in manifests], result, is_dry_run=is_dry_run)
        if not is_dry_run:
            result.tags = self._copy_tags({manifest.seq for _, manifest in manifests})
            result.is_new = self._put_head(there, head, self._reach.closure(manifests))
        return result

    def _read_target(self) -> HeadState:
        """The copy's head; an empty one also where a first replication that never ended has put manifests."""
        try:
            return self._target.read_head_or_empty()
        except HeadLost:
            return HeadState(Head(self._target.root, 0, b"", [], []), EMPTY, None)

    def _check_sweeps(self, there: HeadState) -> None:
        """Where there is no head there is no list of what a collector may be about to delete: it has seen our claim, or
        we see its sweep."""
        under_way = sweeps_under_way(self._target, self._host.clock.wall_ns()) if there.etag is None else []
        if under_way:
            raise Conflict(
                f"{self._target.name} in {self._target.store.url} is being collected by {under_way[0]}",
                hint="run it again when that is done; if it was killed, delete that object, or wait two days",
                dataset=self._target.name,
                key=under_way[0].key,
            )

    def _check_ancestry(
        self, there: HeadState, head: HeadState, history: dict[int, list[tuple[bytes, Manifest]]]
    ) -> None:
        """The copy's newest seq must be one of the source's."""
        if there.etag is None:
            return
        own = history.get(there.manifest.seq)
        is_ours = own is not None and own[0][1].digest == there.manifest.digest
        # A seq that the source no longer keeps cannot be compared.
        is_forgotten = own is None and there.manifest.seq < head.manifest.seq
        if not (is_ours or is_forgotten):
            raise Conflict(
                f"{self._target.name} in {self._target.store.url} has a history of its own: its seq "
                f"{there.manifest.seq} is not the one in {self._source.store.url}",
                hint="replicate into a store of its own, or the other way round",
                dataset=self._target.name,
            )

    def _manifests_to_copy(
        self,
        there: HeadState,
        head: HeadState,
        history: dict[int, list[tuple[bytes, Manifest]]],
        result: ReplicateResult,
    ) -> list[tuple[bytes, Manifest]]:
        """All that are whole, but those of which the copy's collector has condemned something: it may be asleep amid
        its sweep, and has not seen our claim."""
        # What was published while the history was listed comes with the next replication: beyond the copy's head it
        # would be taken for what one left that never ended.
        every = [item for seq, found in history.items() if seq <= head.manifest.seq for item in found]
        why = lacking(self._reach, self._source, self._target, head, every)
        condemned = set(there.head.condemned)
        for name, manifest in every:
            if condemned and name not in why and not condemned.isdisjoint(self._reach.closure([(name, manifest)])):
                why[name] = LeftOut(manifest.seq, "it is being collected in the copy")
        left = [item for item in every if item[0] not in why]
        if all(manifest != head.manifest for _, manifest in left):
            raise Conflict(
                f"{self._target.name} in {self._target.store.url} is being collected",
                hint="run gc there to its end, then replicate again",
                dataset=self._target.name,
            )
        copied = {manifest.seq for _, manifest in left}
        reasons = {reason.seq: reason for reason in why.values() if reason.seq not in copied}
        result.left_out = [reason for _, reason in sorted(reasons.items())]
        return left

    def _runs_to_copy(self, manifests: Iterable[tuple[bytes, Manifest]]) -> list[RunRef]:
        """The runs that the copy lacks; all packs that any run names become known."""
        present = {item.id for item in list_runs(self._target)}
        runs = {run.ulid: run for _, manifest in manifests for run in manifest.runs}
        for ref in runs.values():
            reader = RunReader(self._cache, self._source.root, ref)
            self._infos.update((row[0], PackInfo(*row)) for row in reader.tail.packs)
        return [ref for ulid, ref in runs.items() if ulid not in present]

    def _copy_packs(self, result: ReplicateResult, *, is_dry_run: bool) -> None:
        present = {item.id: item.size for item in list_packs(self._target)}
        lacking = [info for info in self._infos.values() if present.get(info.ulid) != info.object_bytes]
        total = sum(info.object_bytes for info in lacking)
        copied = 0
        for info in lacking if is_dry_run else self._in_parallel(self._copy_pack, lacking):
            result.count("packs", info.object_bytes)
            copied += info.object_bytes
            self._progress("copied", copied, total)

    def _in_parallel(self, copy: Callable[[PackInfo], PackInfo], infos: list[PackInfo]) -> Iterator[PackInfo]:
        if self._executor is None:
            yield from map(copy, infos)
            return
        pending: deque[Future[PackInfo]] = deque()
        for info in infos:
            if len(pending) >= _PACKS_AT_ONCE:
                yield pending.popleft().result()
            pending.append(self._executor.submit(copy, info))
        while pending:
            yield pending.popleft().result()

    def _copy_pack(self, info: PackInfo) -> PackInfo:
        key = pack_key(self._source.root, ulid_text(info.ulid))
        try:
            (data,) = self._source.store.get_ranges(key, [(0, info.object_bytes)])
            view = memoryview(data)
            if parse_header(view) != info.ulid:
                raise Corrupt("it is another pack under this name")
            chunks = list(parse_tail(info.ulid, bytes(view[-info.tail_bytes :]), len(data), info.slots_digest))
            for chunk in chunks:
                decode_chunk(chunk, view[chunk.offset : chunk.offset + chunk.stored_bytes])
        except BoxlinkError as error:
            error.key = error.key or key
            error.hint = error.hint or f"boxlink verify {self._source.name} --data names all that is damaged"
            raise
        self._target.store.put(pack_key(self._target.root, ulid_text(info.ulid)), data)
        return info

    def _copy_runs(self, runs: list[RunRef], result: ReplicateResult, *, is_dry_run: bool) -> None:
        for ref in runs:
            if not is_dry_run:
                self._target.store.put(ref.key(self._target.root), self._whole_run(ref))
            result.count("runs", ref.object_bytes)

    def _whole_run(self, ref: RunRef) -> Path:
        """A verified copy here; one that was damaged on its way is fetched once more."""
        key = ref.key(self._source.root)
        self._cache.fill(self._source.root, [ref])
        try:
            _check_run(self._cache.path(key), self._source.root, ref)
        except (Corrupt, Unsupported):
            # A header says what it needs before anything tells that it is right.
            self._cache.drop(key)
            self._cache.fill(self._source.root, [ref])
            _check_run(self._cache.path(key), self._source.root, ref)
        return self._cache.path(key)

    def _copy_attachments(
        self, manifests: Iterable[tuple[bytes, Manifest]], result: ReplicateResult, *, is_dry_run: bool
    ) -> None:
        present = {item.id for item in list_attachments(self._target)}
        wanted = {item.ulid: item for _, manifest in manifests for item in manifest.attachments}
        for ulid, item in wanted.items():
            if ulid not in present and item.kind in ATTACHMENTS:
                if not is_dry_run:
                    with tempfile.NamedTemporaryFile() as file:
                        self._fetch_attachment(item, file)
                        self._target.store.put(item.key(self._target.root), Path(file.name))
                result.count("attachments", item.object_bytes)

    def _fetch_attachment(self, item: Attachment, file: IO[bytes]) -> None:
        """A verified copy here."""
        key = item.key(self._source.root)
        try:
            for start in range(0, item.object_bytes, _READ_BYTES):
                stop = min(start + _READ_BYTES, item.object_bytes)
                file.write(self._source.store.get_ranges(key, [(start, stop)])[0])
            file.flush()
            check_attachment(item, lambda start, stop: os.pread(file.fileno(), stop - start, start))
        except BoxlinkError as error:
            error.key = error.key or key
            raise

    def _copy_manifests(self, manifests: list[Manifest], result: ReplicateResult, *, is_dry_run: bool) -> None:
        present = {item.key for item in list_manifests(self._target)}
        for manifest in manifests:
            data = encode_manifest(manifest)
            key = manifest_key(self._target.root, manifest.seq, manifest_digest(data))
            if key not in present:
                if not is_dry_run:
                    # A collector that has ended our claim may have swept what this names.
                    self._claim.check()
                    self._target.store.put(key, data)
                result.count("manifests", len(data))

    def _copy_tags(self, seqs: set[int]) -> int:
        """Set the source's tags of these seqs, so not of what is being collected there; the copy's own ones stay."""
        there = tags(self._target)
        changed = {name: tag for name, tag in tags(self._source).items() if tag.seq in seqs and there.get(name) != tag}
        for name, tag in changed.items():
            self._target.store.put(tag_key(self._target.root, name), encode_tag(tag))
        return len(changed)

    def _put_head(self, there: HeadState, head: HeadState, reached: set[bytes]) -> bool:
        """Make the source's head the copy's; False when it is already. What a collector has condemned of all that was
        copied since we hold it is spared."""
        if there.etag is None:
            return self._put_first_head(there, head)

        def change(state: HeadState) -> Head | None:
            if state.manifest.seq > head.manifest.seq:
                raise Conflict(f"{self._target.name} was published into {self._target.store.url} meanwhile")
            condemned = [name for name in state.head.condemned if name not in reached]
            new = msgspec.structs.replace(state.head, manifest=head.head.manifest, condemned=condemned)
            return None if new == state.head else new

        update_head(self._target, self._host, change, self._claim.check)
        return there.head.manifest != head.head.manifest

    def _put_first_head(self, there: HeadState, head: HeadState) -> bool:
        new = Head(self._target.root, 0, head.head.manifest, [], [])
        commit = ulid_text(ulid_bytes(self._host.clock, self._host.entropy))
        self._claim.check()
        try:
            swap_head(self._target, there, new, commit)
        except Ambiguous:
            if commit not in self._target.read_head().head.commits:
                raise
        return True


def _check_run(path: Path, root: str, ref: RunRef) -> None:
    """Corrupt unless a file holds a run whole and right."""
    reader = RunReader(_OneFile(path), root, ref)
    (header,) = reader.source.get_ranges(reader.key, [(0, HEADER_BYTES)])
    check_header(header, reader.tail)
    for raw in reader.raw_blocks():
        reader.check(raw)


class _OneFile:
    """A run in a file that is what will be sent: nothing else stands in for it where it is damaged."""

    is_far = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        with open(self._path, "rb", buffering=0) as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        return [self.get_ranges(*request) for request in requests]

    def drop(self, key: str) -> bool:
        return False
