"""Restore: bring a directory to a seq, fetching only what is not here, and leaving what is not ours.

Two passes. The first compares the chain with what stands on disk and spools what is missing, so that need and free
space, requests and bytes are known before anything is written. The second makes directories and links, lets workers
fetch and write files, and places large ones. A file gets its name only when it is whole and verified, so a restore that
is killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synclib.core.content_set import ContentSet
from synclib.core.entry import Entry, Kind, group_of
from synclib.core.manifest import Manifest, RunRef
from synclib.core.names import DOWN, is_reserved, sort_key, split_path
from synclib.core.parents import no_parent, with_parents
from synclib.disk.faults import disk_errors
from synclib.disk.held import Held
from synclib.disk.tree import Tree, open_tree
from synclib.engine.clear import PATHS_TOLD_MAX, Cleared, note_published, remove_extra, remove_old
from synclib.engine.compare import Comparison, Everything, Survey, noting_doubtful
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lease import pin
from synclib.engine.opened import Opened
from synclib.engine.place import Placed, Placement, count_requests
from synclib.engine.seeds import Moved
from synclib.engine.standing import Standing
from synclib.engine.task import RestoreOptions, RestoreTask
from synclib.errors import BoxlinkError, Full, Invalid, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_cache import RunCache
from synclib.store.meter import Meter

__all__ = ["RestoreOptions", "RestoreResult", "restore", "restore_newest", "restore_seq"]

# What a file system needs beside the bytes: inodes, directories, our own state.
_RESERVE_BYTES = 16 << 20
# Runs up to this length together are brought here whole also for one path: they are some hundred thousand entries.
_FILL_BYTES = 8 << 20
# A restore that meets this many heads whose objects are gone is slower than the collector.
_HEADS_MAX = 4


@dataclass
class RestoreResult:
    """What became of it. ``kept``: paths that the chain removed but somebody had changed here."""

    seq: int = 0
    digest: str = ""
    files: int = 0
    plain_bytes: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0
    fetch_requests: int = 0
    deleted: int = 0
    kept: list[bytes] = field(default_factory=list)
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    left_out: list[str] = field(default_factory=list)  # what only root can set, and this was not root
    need_bytes: int = 0  # of the files that were missing; a dry run says with it what is free
    free_bytes: int = 0
    # Of a dry run: how many paths would be made or changed, and the first of those, and of those that would be deleted.
    write_count: int = 0
    would_write: list[bytes] = field(default_factory=list)
    would_delete: list[bytes] = field(default_factory=list)


def restore(
    dataset: Dataset,
    manifest: Manifest,
    connect: Connect | None,
    directory: Path,
    host: Host,
    options: RestoreOptions,
    progress: Progress,
) -> RestoreResult:
    """Bring ``directory`` to ``manifest``.

    Full when there is not the space. Corrupt names the object that is; Missing, the object that is gone: in both cases
    whatever is not in it was restored. Before the first change ``synch.down`` is taken away: what it says holds no
    longer (I1).
    """
    task = RestoreTask(dataset, manifest, connect, directory, host, options, progress)
    if directory.exists() and not directory.is_dir():
        raise Invalid(f"{directory} is no directory", hint="name a directory to restore into", path=str(directory))
    if options.is_dry_run:
        return _dry_run(task)
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
        held = Held(directory)
        lock = held.lock()
        try:
            fence = host.entropy.token(16)
            held.fence(lock, fence, host.clock)
            runs = RunCache(held.runs, dataset.store)
            with contextlib.closing(open_tree(os.fsencode(directory))) as tree:
                return _Restoration(task, held, tree, runs, fence).run()
        finally:
            os.close(lock)


def restore_newest(
    dataset: Dataset, connect: Connect | None, directory: Path, host: Host, options: RestoreOptions, progress: Progress
) -> RestoreResult:
    """Bring ``directory`` to the head. When an object is gone that a head named, the next head is taken, if there is
    one: a collector removes only what the newest does without."""
    state = dataset.read_head()
    for _ in range(_HEADS_MAX - 1):
        try:
            return restore(dataset, state.manifest, connect, directory, host, options, progress)
        except Missing:
            newer = dataset.read_head_since(state.etag)
            if newer is None:
                raise
            state = newer
    return restore(dataset, state.manifest, connect, directory, host, options, progress)


def restore_seq(
    dataset: Dataset,
    manifest: Manifest,
    connect: Connect | None,
    directory: Path,
    host: Host,
    options: RestoreOptions,
    progress: Progress,
) -> RestoreResult:
    """Bring ``directory`` to the seq of ``manifest``. When an object is gone that it named, and the seq has another
    chain by now, that one is taken."""
    for _ in range(_HEADS_MAX - 1):
        try:
            return restore(dataset, manifest, connect, directory, host, options, progress)
        except Missing as error:
            present = dataset.manifest_at(manifest.seq) if error.key else manifest
            if present.runs == manifest.runs:
                raise
            manifest = present
    return restore(dataset, manifest, connect, directory, host, options, progress)


def _dry_run(task: RestoreTask) -> RestoreResult:
    """What a restore would do. Nothing is written where it would restore, and nothing kept."""
    with disk_errors(), tempfile.TemporaryDirectory(prefix="boxlink-") as scratch:
        top = task.directory if task.directory.is_dir() else Path(scratch)
        with contextlib.closing(open_tree(os.fsencode(top))) as tree:
            held = Held(task.directory)
            runs = RunCache(Path(scratch) / "run", task.dataset.store, held.runs)
            return _Restoration(dataclasses.replace(task, directory=top), held, tree, runs, b"").run()


class _Restoration:
    def __init__(self, task: RestoreTask, held: Held, tree: Tree, runs: RunCache, fence: bytes) -> None:
        self._task, self._tree, self._runs, self._fence = task, tree, runs, fence
        self._dataset, self._manifest, self._options = task.dataset, task.manifest, task.options
        self._directory = task.directory
        self._standing = Standing(task, held, runs)

    def run(self) -> RestoreResult:
        cache = self._runs
        if not self._options.path or sum(run.object_bytes for run in self._manifest.runs) <= _FILL_BYTES:
            # Of a large chain that is wanted for one path, what is needed is read where it is needed.
            cache.fill(self._dataset.root, self._manifest.runs)
        new = Chain.of(cache, self._dataset.root, self._manifest.runs)
        old = self._chain_of(cache, self._standing.runs)
        survey = self._survey(old, new)
        with contextlib.closing(survey.links):
            return self._run(old, new, survey)

    def _run(self, old: Chain, new: Chain, survey: Survey) -> RestoreResult:
        moved = Moved(self._tree, old, new, survey.wanted)
        placed, cleared = Placed(), Cleared(is_dry_run=self._options.is_dry_run)
        if self._options.is_dry_run:
            return self._count(old, new, survey, moved, cleared)
        self._check_space(survey.need_bytes - moved.room_bytes)
        if self._options.is_delete or not survey.is_nothing or not self._standing.is_done_already():
            placed = self._change(old, new, survey, moved, cleared)
        return self._result(survey, moved, placed, cleared)

    def _count(self, old: Chain, new: Chain, survey: Survey, moved: Moved, cleared: Cleared) -> RestoreResult:
        """What a restore would do; the first of its paths by name."""
        self._remove(self._standing.abandoned, Opened(self._tree), old, new, cleared)
        placed = Placed(files=survey.file_count)
        count_requests((entry for entry in survey.missing if entry not in moved), placed)
        linked = (link.entry for link in survey.links.missing)
        touched = itertools.chain(survey.missing, survey.mislabelled, linked)
        result = self._result(survey, moved, placed, cleared)
        result.would_write = [entry.path for entry in itertools.islice(touched, PATHS_TOLD_MAX)]
        result.write_count = len(result.would_write) + sum(1 for _ in touched)
        result.would_delete = cleared.would_delete
        return result

    def _survey(self, old: Chain, new: Chain) -> Survey:
        is_plain = not self._options.path and not self._options.is_dry_run
        # What holes and links do not need is only known of entries that were looked at.
        has_room = self._manifest.plain_bytes + _RESERVE_BYTES <= self._free_bytes()
        if self._standing.before is None and is_plain and has_room and self._is_empty():
            return Everything(with_first(self._options.first, new), self._manifest)
        doubtful = ContentSet()
        if self._standing.is_clean and not self._options.is_full and not self._options.path:
            changed = noting_doubtful(changes(old, new), doubtful)
            comparison = self._compare(_within_tree(changed, new), doubtful, is_all=False)
            if comparison is not None:
                return comparison
        for former in [old, *(self._chain_of(self._runs, runs) for runs in self._standing.abandoned)]:
            if former.runs:
                deque(noting_doubtful(changes(former, new), doubtful), maxlen=0)
        entries = self._below_path(new) if self._options.path else with_parents(new.entries())
        found = self._compare(entries, doubtful, is_all=True)
        assert found is not None
        return found

    def _compare(self, entries: Iterator[Entry], doubtful: ContentSet, *, is_all: bool) -> Comparison | None:
        """What of the entries is not here. None where they are not all, and one is of a hard-link group: what is to be
        linked to it may be none of them."""
        comparison = Comparison(self._tree, self._standing.before, doubtful)
        for entry in entries:
            if not is_all and group_of(entry.extra):
                return None
            comparison.look(entry)
        return comparison

    def _is_empty(self) -> bool:
        with os.scandir(self._tree.top) as listing:
            return all(is_reserved(b"", item.name) for item in listing)

    def _result(self, survey: Survey, moved: Moved, placed: Placed, cleared: Cleared) -> RestoreResult:
        manifest = self._manifest
        return RestoreResult(
            manifest.seq,
            manifest.digest,
            manifest.file_count,
            manifest.plain_bytes,
            placed.files,
            placed.fetched_bytes,
            placed.fetch_requests,
            cleared.deleted,
            cleared.kept,
            placed.problems,
            placed.meter,
            sorted(placed.left_out),
            max(0, survey.need_bytes - moved.room_bytes),
            self._free_bytes(),
        )

    def _change(self, old: Chain, new: Chain, survey: Survey, moved: Moved, cleared: Cleared) -> Placed:
        """All that changes something, in an order that can be broken off anywhere."""
        self._options.before_change()
        self._withdraw()
        abandoned = self._standing.begin()
        self._tree.prepare()
        survey.label()
        if not self._options.path:
            moved.keep()
        opened = Opened(self._tree)
        self._remove(abandoned, opened, old, new, cleared)
        with (
            self._pinned(survey) as task,
            contextlib.closing(Placement(task, self._tree, opened, self._fence, old, moved)) as placement,
        ):
            placed = placement.make(survey.missing, survey.links, survey.need_bytes)
        if not placed.problems and not self._options.path:
            self._standing.end()
        return placed

    def _remove(self, abandoned: list[list[RunRef]], opened: Opened, old: Chain, new: Chain, cleared: Cleared) -> None:
        """Remove what the chain had put here and has no longer, and, if asked, whatever is not its own."""
        # A count of what is not in the dataset counts what is no longer in it too.
        is_counted_below = cleared.is_dry_run and self._options.is_delete
        if not self._options.path and not is_counted_below:
            for runs in abandoned:
                remove_old(self._tree, opened, self._chain_of(self._runs, runs), new, cleared)
            remove_old(self._tree, opened, old, new, cleared)
            if self._standing.before is None and not self._options.is_delete:
                note_published(self._tree, self._chain_of(self._runs, self._standing.published()), new, cleared)
        if self._options.is_delete:
            # First, so that a stranger's full directory is not in the way of a file.
            remove_extra(self._tree, opened, self._options.path, new, cleared)

    def _withdraw(self) -> None:
        """What ``synch.down`` says holds no longer (I1)."""
        # Not by disk/markers.py, whose schemas take as long to import as one file takes to restore.
        (self._directory / DOWN).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _pinned(self, survey: Survey) -> Iterator[RestoreTask]:
        """The task while a pin keeps collectors from its seq, if there is anything to fetch.

        A node may have no right to write into the store, or come when the seq is condemned already: then it goes
        without, and a restore that meets a removed object begins anew with a newer head.
        """
        task = self._task
        holder = pin(task.dataset, task.host)
        if survey.need_bytes:
            with contextlib.suppress(BoxlinkError):
                holder.take(task.dataset.read_head(), task.manifest.seq)

        def progress(what: str, done: int, total: int) -> None:
            with contextlib.suppress(BoxlinkError):
                holder.renew()
            task.progress(what, done, total)

        try:
            yield dataclasses.replace(task, progress=progress)
        finally:
            holder.end()

    def _chain_of(self, cache: RunCache, runs: list[RunRef]) -> Chain:
        """A chain that stood here; an empty one when its runs are gone from here and from the store."""
        try:
            cache.fill(self._dataset.root, runs)
        except Missing:
            return Chain([])
        return Chain.of(cache, self._dataset.root, runs)

    def _below_path(self, new: Chain) -> Iterator[Entry]:
        path = self._options.path
        entry = new.lookup(sort_key(*split_path(path)))
        if entry is None:
            raise Missing(f"{self._dataset.name} has no {os.fsdecode(path)} at seq {self._manifest.seq}")
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = new.lookup(sort_key(*split_path(b"/".join(parts[:depth]))))
            if parent is None or parent.kind != Kind.DIRECTORY:
                raise no_parent(entry)
            yield parent
        yield entry
        if entry.kind == Kind.DIRECTORY:
            yield from with_parents(new.below(path), path)

    def _check_space(self, need_bytes: int) -> None:
        have = self._free_bytes()
        if need_bytes > 0 and need_bytes + _RESERVE_BYTES > have:
            raise Full(
                f"{self._dataset.name} needs {need_bytes + _RESERVE_BYTES} bytes here, {have} are free",
                hint="make room, or restore a part with --path",
                path=str(self._directory),
            )

    def _free_bytes(self) -> int:
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize


def with_first(paths: Sequence[bytes], chain: Chain) -> Iterator[Entry]:
    """All entries of a chain, each after its directory: those of ``paths`` first, in that order, then the rest as they
    come. What is not in the chain is passed over. Corrupt as in :func:`with_parents`."""
    seen: set[bytes] = set()
    for path in paths:
        parts = path.split(b"/")
        for depth in range(1, len(parts) + 1):
            entry = chain.lookup(sort_key(*split_path(b"/".join(parts[:depth]))))
            if entry is None or (depth < len(parts) and entry.kind != Kind.DIRECTORY):
                break
            if entry.key not in seen:
                seen.add(entry.key)
                yield entry
    yield from (entry for entry in with_parents(chain.entries()) if entry.key not in seen)


def _within_tree(changed: Iterator[tuple[Entry | None, Entry | None]], new: Chain) -> Iterator[Entry]:
    """What the changes put, as it came; Corrupt where one puts an entry into what is no directory of the new chain, or
    takes the directory from under entries that stay."""
    directory = b""
    for before, after in changed:
        if after is None:
            continue
        if after.directory != directory:
            directory = after.directory
            parent = new.lookup(sort_key(*split_path(directory))) if directory else None
            if directory and (parent is None or parent.kind != Kind.DIRECTORY):
                raise no_parent(after)
        is_taken = before is not None and before.kind == Kind.DIRECTORY and after.kind != Kind.DIRECTORY
        if is_taken and (left := next(new.below(after.path, with_hashes=False), None)) is not None:
            raise no_parent(left)
        yield after
