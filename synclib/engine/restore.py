"""Restore: bring a directory to a seq, fetching only what is not here, and leaving what is not ours.

Two passes. The first compares the chain with what stands on disk and spools what is missing, so that need and free
space, requests and bytes are known before anything is written. The second makes directories and links, lets workers
fetch and write files, and places large ones. A file gets its name only when it is whole and verified, so a restore that
is killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from synclib.core.delta import join
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.manifest import Manifest, RunRef
from synclib.core.names import DOWN, sort_key, split_path
from synclib.core.parents import no_parent, with_parents
from synclib.core.plan import WINDOW_BYTES, WINDOW_FILES, FetchPlan, is_one_piece, plan_window, split_file
from synclib.disk.atomic import sync_file_system
from synclib.disk.base import BaseFile
from synclib.disk.faults import disk_errors, full_disk_is_an_error
from synclib.disk.held import Held, Restoring, State, Unsynced, boot_id
from synclib.disk.markers import Markers
from synclib.disk.scan import scan
from synclib.disk.spool import Spool
from synclib.disk.tree import InTheWay, Tree, open_tree, write_all
from synclib.engine.fetch_job import FetchJob, FetchResult, fetch_files, run_fetch_job
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.workers import run_in_order, start_processes, worker_count
from synclib.errors import Full, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_cache import RunCache
from synclib.store.meter import Meter

# What a file system needs beside the bytes: inodes, directories, our own state.
_RESERVE_BYTES = 16 << 20
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class RestoreOptions:
    path: bytes = b""  # only this file or folder
    is_delete: bool = False  # remove what the dataset does not have
    is_dry_run: bool = False
    is_full: bool = True  # look at every path; else only at what the chain changed since
    is_durable: bool = False  # flush all to the disk before saying that it is done; else the next restore may check
    before_change: Callable[[], None] = lambda: None  # called once, before the first change to what stands here


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


def restore(
    dataset: Dataset,
    manifest: Manifest,
    connect: Connect | None,
    directory: Path,
    host: Host,
    options: RestoreOptions,
    progress: Progress,
) -> RestoreResult:
    """Bring ``directory`` to ``manifest``. Full when there is not the space; Corrupt names the object that is.

    Before the first change ``synch.down`` is taken away: what it says holds no longer (I1).
    """
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
        held = Held(directory)
        lock = held.lock()
        try:
            fence = host.entropy.token(16)
            held.fence(lock, fence, host.clock)
            with contextlib.closing(open_tree(os.fsencode(directory))) as tree:
                return _Restoration(
                    dataset, manifest, connect, directory, host, options, progress, held, tree, fence
                ).run()
        finally:
            os.close(lock)


class _Restoration:
    def __init__(
        self,
        dataset: Dataset,
        manifest: Manifest,
        connect: Connect | None,
        directory: Path,
        host: Host,
        options: RestoreOptions,
        progress: Progress,
        held: Held,
        tree: Tree,
        fence: bytes,
    ) -> None:
        self._dataset, self._manifest, self._connect, self._directory = dataset, manifest, connect, directory
        self._host, self._options, self._progress = host, options, progress
        self._held, self._tree, self._fence = held, tree, fence
        self._result = RestoreResult(manifest.seq, manifest.digest, manifest.file_count, manifest.plain_bytes)
        before = held.read()
        is_ours = before is not None and (before.store, before.root) == (dataset.store.url, dataset.root)
        self._before = before if is_ours else None
        self._missing: Spool[Entry] = Spool(Entry)
        # Right bytes, but not the right mode or time.
        self._mislabelled: Spool[Entry] = Spool(Entry)
        self._old_directories: list[Entry] = []
        self._need_bytes = 0
        self._done_bytes = 0
        self._late_modes: list[Entry] = []
        self._large: dict[bytes, _Large] = {}
        self._unsynced: Unsynced | None = None

    def run(self) -> RestoreResult:
        root = self._dataset.root
        cache = RunCache(self._held.runs, self._dataset.store)
        cache.fill(root, self._manifest.runs)
        new = Chain.of(cache, root, self._manifest.runs)
        old = self._old = self._chain_of(cache, self._before.runs if self._before is not None else [])
        for former, entry in self._changes(old, new):
            self._look(former, entry)
        self._check_space()
        if self._options.is_dry_run:
            for plan in self._plans():
                self._result.fetch_requests += plan.range_count
            return self._result
        if self._is_done_already():
            return self._result
        self._options.before_change()
        Markers(self._directory).remove(DOWN)
        abandoned = self._mark_begun()
        self._tree.prepare()
        for entry in self._mislabelled:
            self._restat(entry)
        for runs in abandoned:
            self._remove_old(self._chain_of(cache, runs), new)
        self._remove_old(old, new)
        if self._options.is_delete:
            # First, so that a stranger's full directory is not in the way of a file.
            self._remove_extra(new)
        self._make_all()
        for entry in reversed(self._late_modes):
            self._attempt(entry, self._tree.set_mode)
        if not self._result.problems:
            self._mark_done()
        return self._result

    def _is_done_already(self) -> bool:
        before = self._before
        is_same = before is not None and before.restoring is None and before.runs == self._manifest.runs
        is_whole = not self._missing.count and not self._mislabelled.count
        is_flushed = before is not None and (before.unsynced is None or not self._options.is_durable)
        return is_same and is_whole and is_flushed and not self._options.is_delete

    # -- first pass: what is missing

    def _chain_of(self, cache: RunCache, runs: list[RunRef]) -> Chain:
        """A chain that stood here; an empty one when its runs are gone from here and from the store."""
        try:
            cache.fill(self._dataset.root, runs)
        except Missing:
            return Chain([])
        return Chain.of(cache, self._dataset.root, runs)

    def _changes(self, old: Chain, new: Chain) -> Iterator[tuple[Entry | None, Entry | None]]:
        """(what stood here, what should) of each path that has to be looked at."""
        if self._options.path:
            yield from self._below_path(new)
            return
        is_clean = self._before is not None and self._before.seq and self._before.restoring is None
        if is_clean and not self._options.is_full:
            yield from _within_tree(changes(old, new), new)
            return
        entries = with_parents(new.entries())
        yield from join(old.entries(), entries, lambda entry: entry.key, lambda entry: entry.key)

    def _below_path(self, new: Chain) -> Iterator[tuple[Entry | None, Entry | None]]:
        path = self._options.path
        entry = new.lookup(sort_key(*split_path(path)))
        if entry is None:
            raise Missing(f"{self._dataset.name} has no {os.fsdecode(path)} at seq {self._manifest.seq}")
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = new.lookup(sort_key(*split_path(b"/".join(parts[:depth]))))
            if parent is None or parent.kind != Kind.DIRECTORY:
                raise no_parent(entry)
            yield None, parent
        yield None, entry
        if entry.kind == Kind.DIRECTORY:
            for below in with_parents(new.below(path), path):
                yield None, below

    def _look(self, former: Entry | None, entry: Entry | None) -> None:
        """Decide what one path needs: nothing, a removal, or to be made."""
        if entry is None:
            return
        found = self._tree.lstat(entry)
        if found is not None and self._is_here(entry, found):
            return
        self._missing.add(entry)
        if entry.kind == Kind.FILE:
            self._need_bytes += entry.size
            self._result.fetched_files += 1

    def _is_here(self, entry: Entry, found: os.stat_result) -> bool:
        mode = found.st_mode
        if entry.kind == Kind.DIRECTORY:
            return stat.S_ISDIR(mode) and stat.S_IMODE(mode) == entry.mode
        if entry.kind == Kind.SYMLINK:
            is_same = stat.S_ISLNK(mode) and found.st_mtime_ns == entry.mtime_ns
            return is_same and self._tree.readlink(entry) == entry.target
        if not stat.S_ISREG(mode) or found.st_size != entry.size:
            return False
        if not self._is_believed(entry, found) and not self._has_content(entry):
            return False
        if stat.S_IMODE(mode) != entry.mode or found.st_mtime_ns != entry.mtime_ns:
            self._mislabelled.add(entry)
        return True

    def _is_believed(self, entry: Entry, found: os.stat_result) -> bool:
        """Whether size and time are enough: only of files that a restore of ours has placed."""
        if found.st_mtime_ns != entry.mtime_ns or self._before is None:
            return False
        restoring, unsynced = self._before.restoring, self._before.unsynced
        if unsynced is not None and unsynced.boot_id != boot_id() and found.st_ctime_ns >= unsynced.since_ns:
            return False
        if restoring is None:
            return self._before.seq > 0
        return restoring.boot_id == boot_id() and found.st_ctime_ns >= restoring.started_at_ns

    def _has_content(self, entry: Entry) -> bool:
        """Whether a local file has an entry's bytes: it is read and hashed."""
        try:
            descriptor = self._tree.open_file(entry)
        except OSError:
            return False
        try:
            return all(blake3(data).digest() == chunk.hash for chunk, data in _read_chunks(descriptor, entry.chunks))
        finally:
            os.close(descriptor)

    def _restat(self, entry: Entry) -> None:
        """Give a file its mode and time; one that is not ours to change is written anew."""
        try:
            descriptor = self._tree.open_file(entry)
            try:
                os.fchmod(descriptor, entry.mode)
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(descriptor)
        except OSError:
            self._missing.add(entry)

    def _check_space(self) -> None:
        status = os.statvfs(self._directory)
        have = status.f_bavail * status.f_frsize
        if self._need_bytes and self._need_bytes + _RESERVE_BYTES > have:
            raise Full(
                f"{self._dataset.name} needs {self._need_bytes + _RESERVE_BYTES} bytes here, {have} are free",
                hint="make room, or restore a part with --path",
                path=str(self._directory),
            )

    # -- second pass: make it so

    def _mark_begun(self) -> list[list[RunRef]]:
        """Write that the old seq no longer stands, and since when files are ours; the chains of restores that never
        ended, whose files must go too."""
        before = self._before
        if self._options.path:
            return []
        former = before.restoring if before is not None else None
        abandoned = [] if former is None else former.targets
        started = former.started_at_ns if former is not None and former.boot_id == boot_id() else self._disk_time_ns()
        targets = [*(runs for runs in abandoned if runs != self._manifest.runs), self._manifest.runs]
        restoring = Restoring(targets, started, boot_id())
        seq, digest, runs = (before.seq, before.digest, before.runs) if before is not None else (0, "", [])
        former_unsynced = before.unsynced if before is not None else None
        # What an older boot left unsynced has been looked at by now, all of it if this is a full restore.
        is_older = former_unsynced is not None and former_unsynced.boot_id == boot_id()
        self._unsynced = former_unsynced if is_older else Unsynced(started, boot_id())
        store_url, root = self._dataset.store.url, self._dataset.root
        self._held.write(State(store_url, root, seq, digest, runs, restoring, former_unsynced))
        return abandoned

    def _disk_time_ns(self) -> int:
        """Now by the file system's own clock, which may run a tick behind the wall clock."""
        self._held.directory.mkdir(exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._held.directory)
        try:
            return os.fstat(descriptor).st_ctime_ns
        finally:
            os.close(descriptor)
            os.unlink(path)

    def _mark_done(self) -> None:
        if self._options.path:
            # A part is no seq: what is written of the whole stays.
            return
        if self._options.is_durable:
            sync_file_system(self._directory)
        dataset, manifest = self._dataset, self._manifest
        unsynced = None if self._options.is_durable else self._unsynced
        self._held.keep_manifest(manifest)
        self._held.write(
            State(dataset.store.url, dataset.root, manifest.seq, manifest.digest, manifest.runs, unsynced=unsynced)
        )
        RunCache(self._held.runs, dataset.store).prune(dataset.root, self._held.kept_runs())
        base = BaseFile(self._host.state, dataset.store.url, dataset.root, os.fsencode(self._directory))
        base.write(manifest.seq, manifest.digest, manifest.runs)

    def _remove_old(self, old: Chain, new: Chain) -> None:
        """Remove what the chain had put here and has no longer; what somebody changed since stays, and is named."""
        if self._options.path or not old.runs:
            return
        directories: list[Entry] = []
        for former, entry in changes(old, new):
            if former is None or (
                entry is not None and (entry.kind == Kind.DIRECTORY) == (former.kind == Kind.DIRECTORY)
            ):
                continue
            if former.kind == Kind.DIRECTORY:
                directories.append(former)
            elif entry is None:
                self._remove_file(former)
        for former in reversed(directories):
            if self._tree.remove(former):
                self._result.deleted += 1
        self._tree.forget()

    def _remove_file(self, former: Entry) -> None:
        found = self._tree.lstat(former)
        if found is None:
            return
        is_same = found.st_mtime_ns == former.mtime_ns
        if former.kind == Kind.FILE:
            is_same = is_same and stat.S_ISREG(found.st_mode) and found.st_size == former.size
        else:
            is_same = is_same and stat.S_ISLNK(found.st_mode)
        if is_same and self._tree.remove(former):
            self._result.deleted += 1
        else:
            self._result.kept.append(former.path)

    def _remove_extra(self, new: Chain) -> None:
        """With --delete: whatever the dataset does not have goes, markers and state apart."""
        prefix = self._options.path
        top = os.path.join(os.fsencode(self._directory), prefix) if prefix else os.fsencode(self._directory)
        if not os.path.isdir(top):
            return
        directories: list[Entry] = []
        entries = new.below(prefix, with_hashes=False)
        for entry, found in join(entries, scan(top, prefix), lambda item: item.key, lambda item: item.key):
            if entry is not None or found is None or not found.name:
                continue
            extra = Entry(found.directory, found.name, found.kind)
            if found.kind == Kind.DIRECTORY:
                directories.append(extra)
            elif self._tree.remove(extra):
                self._result.deleted += 1
        for extra in reversed(directories):
            self._result.deleted += self._tree.remove(extra)
        self._tree.forget()

    def _make_all(self) -> None:
        count = worker_count() * (2 if self._dataset.store.url.startswith("s3:") else 1)
        start = None if self._connect is None else lambda: start_processes("synclib.engine.fetch_job", count)
        store = self._dataset.store
        jobs = (self._job(plan) for plan in self._plans())
        for result in run_in_order(jobs, lambda job: fetch_files(job, store), run_fetch_job, start, count + 2):
            self._take(result)
        for large in list(self._large.values()):
            self._finish_large(large)

    def _plans(self) -> Iterator[FetchPlan]:
        """Walk what is missing: make all that needs no fetching, plan the rest by windows."""
        window = []
        size = 0
        for entry in self._missing:
            if entry.kind == Kind.FILE and entry.chunks:
                wanted = entry.chunks if self._options.is_dry_run else self._wanted_chunks(entry)
                for piece in split_file(entry, wanted):
                    window.append(piece)
                    size += sum(chunk.stored_bytes for chunk in piece.chunks)
            elif not self._options.is_dry_run:
                self._attempt(entry, self._make)
            if size >= WINDOW_BYTES or len(window) >= WINDOW_FILES:
                yield from plan_window(window)
                window, size = [], 0
        yield from plan_window(window)

    def _make(self, entry: Entry) -> None:
        if entry.kind == Kind.DIRECTORY:
            self._tree.make_directory(entry)
            if entry.mode & 0o700 == 0o700:
                self._tree.set_mode(entry)
            else:
                self._late_modes.append(entry)
        elif entry.kind == Kind.SYMLINK:
            self._tree.make_symlink(entry)
        else:
            self._tree.write_file(entry, ())

    def _attempt(self, entry: Entry, make: object) -> None:
        try:
            with full_disk_is_an_error():
                make(entry)  # type: ignore[operator]
        except (OSError, InTheWay) as error:
            self._result.problems.append((entry.path, getattr(error, "strerror", None) or str(error)))

    def _wanted_chunks(self, entry: Entry) -> tuple[ChunkRef, ...]:
        """The chunks of a file that have to be fetched. A file of several pieces gets its temporary file here, and
        what an older version of it holds already."""
        is_small = is_one_piece(entry)
        former = self._old.lookup(entry.key) if len(entry.chunks) > 1 else None
        if is_small and (former is None or former.kind != Kind.FILE):
            return entry.chunks
        temporary, descriptor = self._tree.create_temporary()
        try:
            with full_disk_is_an_error():
                os.ftruncate(descriptor, entry.size)
            wanted = self._seed(entry, former, descriptor)
        finally:
            os.close(descriptor)
        if is_small and len(wanted) == len(entry.chunks):
            self._tree.discard(temporary)
            return wanted
        piece_count = len(list(split_file(entry, wanted)))
        self._large[entry.path] = large = _Large(entry, temporary, piece_count)
        if not piece_count:
            self._finish_large(large)
        return wanted

    def _seed(self, entry: Entry, former: Entry | None, descriptor: int) -> tuple[ChunkRef, ...]:
        """Copy the chunks that the older file at this path holds; returns the others. Every byte is verified."""
        if former is None:
            return entry.chunks
        places: dict[bytes, int] = {}
        offset = 0
        for chunk in former.chunks:
            places.setdefault(chunk.hash, offset)
            offset += chunk.plain_bytes
        try:
            source = self._tree.open_file(entry)
        except OSError:
            return entry.chunks
        wanted: list[ChunkRef] = []
        offset = 0
        try:
            for chunk in entry.chunks:
                place = places.get(chunk.hash)
                data = b"" if place is None else os.pread(source, chunk.plain_bytes, place)
                if place is not None and blake3(data).digest() == chunk.hash:
                    write_all(descriptor, data, offset)
                else:
                    wanted.append(chunk)
                offset += chunk.plain_bytes
        finally:
            os.close(source)
        return tuple(wanted)

    def _job(self, plan: FetchPlan) -> FetchJob:
        temporaries = {
            piece.entry.path: self._large[piece.entry.path].temporary for piece in plan.pieces if not piece.is_whole
        }
        connect = self._connect or Connect(self._dataset.store.url)
        top = os.fsencode(self._directory)
        return FetchJob(connect, self._dataset.root, top, plan, temporaries, self._fence)

    def _take(self, result: FetchResult) -> None:
        self._result.meter.add(result.meter)
        self._result.problems += result.problems
        self._result.fetch_requests += result.plan.range_count
        self._result.fetched_bytes += result.plan.range_bytes
        for piece in result.plan.pieces:
            self._done_bytes += sum(chunk.plain_bytes for chunk in piece.chunks)
            if not piece.is_whole:
                large = self._large[piece.entry.path]
                large.pieces_left -= 1
                if not large.pieces_left:
                    self._finish_large(large)
        self._progress("restored", self._done_bytes, self._need_bytes)

    def _finish_large(self, large: _Large) -> None:
        del self._large[large.entry.path]
        if large.pieces_left or large.entry.path in {path for path, _ in self._result.problems}:
            self._tree.discard(large.temporary)
            return
        descriptor = self._tree.open_temporary(large.temporary)
        try:
            self._attempt(large.entry, lambda entry: self._tree.finish_file(large.temporary, descriptor, entry))
        finally:
            os.close(descriptor)


@dataclass
class _Large:
    """A file that arrives in pieces."""

    entry: Entry
    temporary: bytes
    pieces_left: int


def _within_tree(
    changed: Iterator[tuple[Entry | None, Entry | None]], new: Chain
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """The changes as they came; Corrupt where one puts an entry into what is no directory of the new chain, or takes
    the directory from under entries that stay."""
    directory = b""
    for before, after in changed:
        if after is not None:
            if after.directory != directory:
                directory = after.directory
                parent = new.lookup(sort_key(*split_path(directory))) if directory else None
                if directory and (parent is None or parent.kind != Kind.DIRECTORY):
                    raise no_parent(after)
            is_taken = before is not None and before.kind == Kind.DIRECTORY and after.kind != Kind.DIRECTORY
            if is_taken and (left := next(new.below(after.path, with_hashes=False), None)) is not None:
                raise no_parent(left)
        yield before, after


def _read_chunks(descriptor: int, chunks: tuple[ChunkRef, ...]) -> Iterator[tuple[ChunkRef, bytes]]:
    offset = 0
    for chunk in chunks:
        yield chunk, os.pread(descriptor, chunk.plain_bytes, offset)
        offset += chunk.plain_bytes
