"""Publish: a directory's difference from its base, laid on the head, committed by one compare-and-swap.

The order of writes is what makes it safe to be killed anywhere: packs, run, head. Before the head nothing refers to
what was written; after it nothing is missing. A publish that takes long says so by an intent, lest a collector come
first and it has to begin anew (decision 0007).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.pack import PackInfo
from synclib.disk.base import Base, BaseFile
from synclib.disk.faults import disk_errors
from synclib.disk.held import Held
from synclib.disk.scan import Found
from synclib.disk.scan_extras import Extras
from synclib.disk.stat_cache import StatCache
from synclib.engine.commit import Commit, Laid
from synclib.engine.difference import Difference
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lease import Moved, intent
from synclib.errors import BoxlinkError, Conflict, Invalid, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.run_cache import RunCache
from synclib.store.meter import Meter

_ATTEMPTS = 10
# A publish that uploads or lasts no longer than this takes no intent: if a collector comes first, it begins anew.
_INTENT_BYTES = 64 << 20
_INTENT_S = 60.0
# Runs up to this length together are brought here whole: they are some two million entries.
_FILL_BYTES = 64 << 20


@dataclass(frozen=True)
class PublishOptions:
    prefix: bytes = b""  # folder of the dataset that the directory becomes
    is_mirror: bool = False  # make the dataset exactly the directory, whatever its base
    allow_delete: bool = False
    is_dry_run: bool = False
    owners: bool = False  # record who owns each path
    xattrs: bool = False  # record extended attributes


@dataclass
class PublishResult:
    """What became of it; ``seq`` is the head's, new or not."""

    seq: int = 0
    digest: str = ""
    files: int = 0
    plain_bytes: int = 0
    added: int = 0
    changed: int = 0
    deleted: int = 0
    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    notes: list[tuple[bytes, str]] = field(default_factory=list)  # what is left out of paths that were published
    overridden: list[bytes] = field(default_factory=list)
    is_new: bool = False
    is_whole: bool = False  # whether the directory holds every byte of the seq: no others' changes, nothing kept back
    read_bytes: int = 0  # of files that were, or in a dry run would be, read
    meter: Meter = field(default_factory=Meter)  # what worker processes asked of the store
    head: HeadState | None = field(default=None, compare=False)  # as it was written, or found to be


def publish(
    dataset: Dataset,
    connect: Connect | None,
    directory: bytes,
    host: Host,
    options: PublishOptions,
    progress: Progress,
) -> PublishResult:
    """Make a new seq of ``dataset`` from ``directory``, or none when nothing changed.

    ``connect`` lets worker processes open the store; None keeps all work here. Invalid for a directory that is
    missing, or whose publication would empty the dataset without leave.
    """
    for attempt in range(_ATTEMPTS):
        with contextlib.suppress(Moved):
            publication = _Publication(dataset, connect, directory, host, options, progress, is_again=attempt > 0)
            try:
                return publication.run()
            except Missing:
                publication.check_overtaken()
                raise
    raise Conflict(f"{dataset.name} is being collected", hint="publish again when that is done")


class _Publication:
    def __init__(
        self,
        dataset: Dataset,
        connect: Connect | None,
        directory: bytes,
        host: Host,
        options: PublishOptions,
        progress: Progress,
        *,
        is_again: bool,
    ) -> None:
        self._is_again = is_again
        self._dataset, self._connect, self._directory = dataset, connect, directory
        self._host, self._options, self._progress = host, options, progress
        self._result = PublishResult()
        self._scanned_at_ns = host.clock.wall_ns()
        self._intent = intent(dataset, host)
        self._began_at = host.clock.monotonic()
        self._session = ulid_text(self._intent.session)
        self._extras = Extras(directory, options.prefix, owners=options.owners, xattrs=options.xattrs)
        self._committed: list[RunRef] = []
        self._moved: list[bytes] = []  # paths that were read as they were after the scan
        self._base: Base | None = None
        self._is_delta_there = False  # whether the directory is not its base, which is not the head

    def check_overtaken(self) -> None:
        """Moved when a collector was at work since this began: what was being read may be gone by that."""
        self._intent.check_head(self._dataset.read_head_or_empty())

    def run(self) -> PublishResult:
        dataset = self._dataset
        base_file = BaseFile(self._host.state, dataset.store.url, dataset.root, self._directory, self._options.prefix)
        cache_directory = self._host.dataset_cache(dataset.store.url, dataset.root)
        cache = RunCache(cache_directory / "run", dataset.store, base_file.runs)
        with disk_errors(), cache.in_use():
            return self._run(base_file, cache)

    def _run(self, base_file: BaseFile, cache: RunCache) -> PublishResult:
        dataset, options = self._dataset, self._options
        head = self._head = dataset.read_head_or_empty()
        self._intent.begin(head)
        self._check_source(head)
        base = self._base = None if options.is_mirror else self._base_of(base_file, head)
        self._head_entries = 0 if base else head.manifest.entry_count
        base_runs = head.manifest.runs if base is None or _is_whole_head(base, head) else base.runs
        self._fill(cache, base_runs, head)
        head_chain = Chain.of(cache, dataset.root, head.manifest.runs)
        base_chain = head_chain if base_runs == head.manifest.runs else Chain.of(cache, dataset.root, base_runs)
        manifest = head.manifest
        whole: tuple[int, str] | None = (manifest.seq, manifest.digest)
        if base_chain is not head_chain:
            whole = (base.seq, base.digest) if base is not None and base.is_whole else None
        stats = StatCache(base_file.stat_cache, self._identity(base_runs, whole), is_kept=not options.is_dry_run)
        try:
            difference = self._difference(base_chain, stats, is_live=base_chain is head_chain)
            changes = self._changes(head_chain, difference, stats)
            if options.is_dry_run:
                return self._count_only(head, head_chain, changes, difference)
            delta = self._write(head, head_chain, base_chain, cache, changes)
            unread = [path for path, _ in self._result.skipped] + self._moved
            self._result.skipped = difference.skipped + self._result.skipped
            self._result.notes = difference.notes
            if self._is_delta_there and not self._result.is_new and self._is_head(head_chain):
                base_runs, delta = head.manifest.runs, None
            with self._noting():
                runs = self._write_base(base_file, base_runs, delta, cache)
                result = self._result
                stats.finish(self._identity(runs, (result.seq, result.digest) if result.is_whole else None), unread)
        finally:
            stats.close()
            self._extras.close()
            self._intent.end()
        is_kept_back = any(
            head_chain.lookup(names.sort_key(*names.split_path(path))) for path, _ in self._result.skipped
        )
        self._result.is_whole = self._result.is_whole and not is_kept_back
        return self._result

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Notes are made here after the commit: where that fails, it is said that the commit has not."""
        try:
            with disk_errors():
                yield
        except BoxlinkError as error:
            if self._result.is_new:
                error.message = (
                    f"it is published as seq {self._result.seq}, but that could not be noted: {error.message}"
                )
                error.hint = error.hint or "check the state directory, then publish again: nothing is sent twice"
            raise

    def _identity(self, runs: list[RunRef], whole: tuple[int, str] | None) -> bytes:
        """What a stat cache must be of: what the base holds, and what this publish says of a path.

        ``whole``: seq and digest where the runs are all of a seq's, whose content they then name for ever.
        """
        options = self._options
        named = [(run.ulid, run.tail_digest) for run in runs] if whole is None else whole
        return blake3(msgspec.msgpack.encode((named, options.owners, options.xattrs))).digest()

    def _difference(self, chain: Chain, stats: StatCache | None, *, is_live: bool) -> Difference:
        options = self._options
        # Anew for each scan: which files are links of one another may change in between.
        self._extras.close()
        self._extras = Extras(self._directory, options.prefix, owners=options.owners, xattrs=options.xattrs)
        return Difference(
            chain,
            self._directory,
            options.prefix,
            self._extras,
            stats,
            self._scanned_at_ns,
            self._progress,
            is_live=is_live,
        )

    def _base_of(self, base_file: BaseFile, head: HeadState) -> Base | None:
        """The directory's base, if it is of this dataset's history: a store may have been made anew under its URL."""
        base = base_file.read()
        if head.etag is None:
            return None
        if base is None:
            return self._base_elsewhere(base_file, head)
        manifest = head.manifest
        if base.seq > manifest.seq or (base.seq == manifest.seq and base.digest != manifest.digest):
            raise Conflict(
                f"{self._dataset.name} is at seq {manifest.seq} there, this directory was last at seq {base.seq}",
                hint="is it the right store? --mirror makes the dataset exactly this directory",
            )
        return base

    def _base_elsewhere(self, base_file: BaseFile, head: HeadState) -> Base | None:
        """The base that the directory has with another store, of which this one is a copy: same seq, same digest."""
        for base in base_file.of_other_stores():
            with contextlib.suppress(Missing):
                manifest = self._dataset.manifest_at(base.seq)
                if manifest.digest == base.digest:
                    return msgspec.structs.replace(base, runs=manifest.runs)
        path = Path(os.fsdecode(self._directory))
        if head.manifest.entry_count and Held(path).is_part() and not self._options.prefix:
            raise Invalid(
                f"only a part of {self._dataset.name} was restored into {path}: the rest would be deleted",
                hint="publish the part with --prefix, or restore all of it first; --mirror deletes the rest",
                path=str(path),
            )
        return None

    def _is_head(self, head_chain: Chain) -> bool:
        """Whether the directory is the head: so it is after a publish that was killed when it had committed, but not
        yet noted it."""
        changes = self._difference(head_chain, None, is_live=False).changes()
        return not self._result.skipped and next(changes, None) is None

    def _write_base(
        self, base_file: BaseFile, base_runs: list[RunRef], delta: RunRef | None, cache: RunCache
    ) -> list[RunRef]:
        """The directory is now its former base and the delta upon it; a delta that is no run of the store is kept."""
        runs = base_runs if delta is None else [*base_runs, delta]
        committed = self._committed
        self._result.is_whole = runs == committed
        if delta is not None and delta not in committed:
            base_file.runs.mkdir(parents=True, exist_ok=True)
            os.replace(cache.path(delta.key(self._dataset.root)), base_file.runs / delta.file_name)
        base, result = self._base, self._result
        said = (result.seq, result.digest, runs, result.is_whole)
        if base is None or (base.seq, base.digest, base.runs, base.is_whole) != said:
            base_file.write(result.seq, result.digest, runs, is_whole=result.is_whole)
        for run in runs:
            # The cache may be deleted at any time, or pruned by another directory's publish.
            base_file.keep(run, cache.path(run.key(self._dataset.root)))
        base_file.prune(runs)
        cache.prune({*runs, *committed})
        return runs

    def _fill(self, cache: RunCache, base_runs: list[RunRef], head: HeadState) -> None:
        """Bring the runs here. Without its base a directory's deletions cannot be told from others' additions.

        Of a large chain that is not the base, or of which only a folder is compared, what is needed is read where it
        is needed.
        """
        root, runs = self._dataset.root, head.manifest.runs
        away_bytes = sum(run.object_bytes for run in runs if not cache.path(run.key(root)).exists())
        if away_bytes <= _FILL_BYTES or (base_runs == runs and not self._options.prefix):
            cache.fill(root, runs)
        if base_runs == runs:
            return
        try:
            cache.fill(root, base_runs)
        except Missing as error:
            shown = os.fsdecode(self._directory)
            raise Missing(
                f"what {shown} was when it was last published is no longer in the store",
                hint="copy your changes aside, restore, put them back, publish; --mirror deletes what others added",
                key=error.key,
                path=shown,
            ) from error

    def _check_source(self, head: HeadState) -> None:
        shown = os.fsdecode(self._directory)
        try:
            with os.scandir(self._directory) as listing:
                is_empty = all(names.is_reserved(b"", item.name) for item in listing)
        except OSError as error:
            raise Invalid(f"{shown} cannot be read: {error.strerror}", hint="is it mounted?", path=shown) from error
        if is_empty and head.manifest.entry_count and not self._options.allow_delete:
            raise Invalid(
                f"{shown} is empty, but {self._dataset.name} is not: this would delete all of it",
                hint="is it mounted? --allow-delete publishes it all the same",
                path=shown,
            )

    def _write(
        self, head: HeadState, head_chain: Chain, base_chain: Chain, cache: RunCache, changes: Iterator[Found | Entry]
    ) -> RunRef | None:
        """Upload what changed and commit it; the delta to the base, None when there is none."""
        packs: dict[bytes, PackInfo] = {}
        laid = Laid(self._dataset.root, head, self._scanned_at_ns, packs)
        commit = Commit(self._dataset, self._host, self._intent, cache, packs)
        first = next(changes, None)
        if first is None:
            self._tell(head, laid)
            return None
        # Imported late: a publish of nothing new starts neither processes nor a database.
        from synclib.engine.reading import Reading

        packs.update(_packs_of(head_chain))
        packs.update(_packs_of(base_chain))
        reading = Reading(
            self._dataset,
            self._connect,
            self._directory,
            self._options.prefix,
            self._host,
            self._intent,
            head_chain,
            packs,
        )
        committed: RunRef | None = None
        try:
            for result in reading.results(itertools.chain([first], changes), self._begin_intent):
                self._result.skipped += result.skipped
                self._moved += result.moved
                self._result.meter.add(result.meter)
                for entry in result.entries:
                    laid.lay(entry, base_chain, base_chain)
                self._guard(laid)
                self._intent.renew()
                self._result.read_bytes += result.read_bytes
                self._progress("published", self._result.read_bytes, 0)
            if base_chain is not head_chain:
                self._is_delta_there = laid.is_new
                laid = commit.lay_again(laid, head, base_chain)
            done = commit.commit(head, laid, base_chain)
            committed = done.run
        finally:
            reading.end(committed.ulid if committed is not None else None)
        self._tell(done.head, done.laid)
        return commit.delta

    def _tell(self, state: HeadState, laid: Laid) -> None:
        """Note what became of it."""
        manifest, result = state.manifest, self._result
        self._committed = manifest.runs
        result.head = state
        result.seq, result.digest, result.is_new = manifest.seq, manifest.digest if manifest.seq else "", laid.is_new
        result.files, result.plain_bytes = manifest.file_count, manifest.plain_bytes
        result.added, result.changed, result.deleted = laid.added, laid.changed, laid.deleted
        result.overridden = laid.overridden

    def _guard(self, laid: Laid) -> None:
        if self._options.allow_delete or self._head_entries < 100 or laid.deleted * 2 <= self._head_entries:
            return
        raise Invalid(
            f"this would delete more than half of the {self._head_entries} entries of {self._dataset.name}",
            hint="is all of it mounted? --allow-delete publishes it all the same",
            path=os.fsdecode(self._directory),
        )

    def _changes(self, head_chain: Chain, difference: Difference, stats: StatCache) -> Iterator[Found | Entry]:
        """What differs between base and directory, in order: files to read, all else as entries."""
        # Where the base is the head and its stat cache is here, they were looked up when it was published.
        if not (difference.is_live and stats.is_believed):
            yield from self._missing_ancestors(head_chain)
        yield from difference.changes()

    def _missing_ancestors(self, head_chain: Chain) -> Iterator[Entry]:
        parts = self._options.prefix.split(b"/") if self._options.prefix else []
        for depth in range(len(parts)):
            directory, name = b"/".join(parts[:depth]), parts[depth]
            entry = head_chain.lookup(names.sort_key(directory, name))
            if entry is None or entry.kind != Kind.DIRECTORY:
                yield Entry(directory, name, Kind.DIRECTORY, 0o755)

    def _begin_intent(self, read_bytes: int) -> None:
        """Say in the store that a publisher is at work, if that is needed by now: ``read_bytes`` of files have been, or
        are about to be read."""
        is_long = read_bytes > _INTENT_BYTES or self._host.clock.monotonic() - self._began_at > _INTENT_S
        # Where there is no head nothing is condemned in it: a collector there goes by intents alone.
        if not self._intent.is_held and (is_long or self._is_again or self._head.etag is None):
            self._intent.take(self._head, self._head.manifest.seq)

    def _count_only(
        self,
        head: HeadState,
        head_chain: Chain,
        changes: Iterator[Found | Entry],
        difference: Difference,
    ) -> PublishResult:
        """What a publish would do and then report, by what stat says: no file is read, nothing is written. One that
        would only be read because it is young counts as unchanged. Seq and digest stay the head's."""
        result = self._result
        result.files, result.plain_bytes = head.manifest.file_count, head.manifest.plain_bytes
        for item in changes:
            result.read_bytes += item.size if isinstance(item, Found) else 0
            old = head_chain.lookup(item.key)
            if item.kind == Kind.TOMBSTONE:
                if old is None:
                    continue
                result.deleted += 1
            elif old is None:
                result.added += 1
            elif _looks_same(old, item):
                continue
            else:
                result.changed += 1
            result.files += (item.kind == Kind.FILE) - (old is not None and old.kind == Kind.FILE)
            result.plain_bytes += item.size - (old.size if old is not None else 0)
        result.skipped, result.notes = difference.skipped, difference.notes
        result.seq = head.manifest.seq
        result.digest = head.manifest.digest if head.manifest.seq else ""
        return result


def _looks_same(old: Entry, item: Found | Entry) -> bool:
    """Whether all is the same that can be told of a path without reading it."""
    first, second = ((each.kind, each.mode, each.size, each.target, each.extra) for each in (old, item))
    return first == second and old.mtime_ns == item.mtime_ns


def _is_whole_head(base: Base, head: HeadState) -> bool:
    """Whether the directory was exactly what the head still is, whatever has been compacted since."""
    return base.is_whole and (base.seq, base.digest) == (head.manifest.seq, head.manifest.digest)


def _packs_of(chain: Chain) -> dict[bytes, PackInfo]:
    return {row[0]: PackInfo(*row) for run in chain.runs for row in run.tail.packs}
