"""The second pass of a restore: make what is missing. Directories and links here, files' bytes in workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.plan import (
    WINDOW_BYTES,
    WINDOW_FILES,
    FetchPlan,
    Piece,
    is_one_piece,
    plan_window,
    split_file,
)
from synclib.disk.faults import full_disk_is_an_error
from synclib.disk.spool import Spool
from synclib.disk.tree import InTheWay, Tree, write_all
from synclib.engine.fetch_job import FetchJob, FetchResult, fetch_files, run_fetch_job
from synclib.engine.host import Connect, Progress
from synclib.engine.opened import Opened
from synclib.engine.workers import run_in_order, start_processes, worker_count
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.store.meter import Meter


@dataclass
class Placed:
    """What was made; ``problems`` has (path, reason) of what could not be."""

    fetched_bytes: int = 0
    fetch_requests: int = 0
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


@dataclass
class _Large:
    """A file that arrives in pieces."""

    entry: Entry
    temporary: bytes
    pieces_left: int


def count_requests(missing: Spool[Entry]) -> int:
    """How many ranges would be asked for, as far as that can be told without looking at older files."""
    wanted = ((entry, entry.chunks) for entry in missing if entry.kind == Kind.FILE)
    return sum(plan.range_count for plan in _windows(wanted))


def _windows(wanted: Iterator[tuple[Entry, tuple[ChunkRef, ...]]]) -> Iterator[FetchPlan]:
    """Plans for the wanted chunks of files, a window of them at a time."""
    window: list[Piece] = []
    size = 0
    for entry, chunks in wanted:
        for piece in split_file(entry, chunks):
            window.append(piece)
            size += sum(chunk.stored_bytes for chunk in piece.chunks)
        if size >= WINDOW_BYTES or len(window) >= WINDOW_FILES:
            yield from plan_window(window)
            window, size = [], 0
    yield from plan_window(window)


class Placement:
    """Makes what is missing of one seq in one directory. ``old``: the chain that stood there, for its bytes."""

    def __init__(
        self,
        dataset: Dataset,
        connect: Connect | None,
        tree: Tree,
        opened: Opened,
        fence: bytes,
        old: Chain,
        progress: Progress,
    ) -> None:
        self._dataset, self._connect, self._tree, self._fence = dataset, connect, tree, fence
        self._opened, self._old, self._progress = opened, old, progress
        self._large: dict[bytes, _Large] = {}
        self._done_bytes = 0
        self.placed = Placed()

    def make(self, missing: Spool[Entry], need_bytes: int) -> Placed:
        is_remote = self._dataset.store.url.startswith("s3:")
        count = worker_count() * (2 if is_remote else 1)
        start = None if self._connect is None else lambda: start_processes("synclib.engine.fetch_job", count)
        store = self._dataset.store
        jobs = (self._job(plan) for plan in _windows(self._wanted(missing)))
        for result in run_in_order(jobs, lambda job: fetch_files(job, store), run_fetch_job, start, count + 2):
            self._take(result)
            self._progress("restored", self._done_bytes, need_bytes)
        for large in list(self._large.values()):
            self._finish_large(large)
        for entry in self._opened.modes():
            self._attempt(entry, self._tree.set_mode)
        return self.placed

    def _wanted(self, missing: Spool[Entry]) -> Iterator[tuple[Entry, tuple[ChunkRef, ...]]]:
        """Make all that needs no fetching; the chunks of the rest."""
        for entry in missing:
            self._opened.open_up(entry.directory)
            if entry.kind == Kind.FILE and entry.chunks:
                yield entry, self._lacking_chunks(entry)
            else:
                self._attempt(entry, self._make)

    def _make(self, entry: Entry) -> None:
        if entry.kind == Kind.DIRECTORY:
            self._tree.make_directory(entry)
            if entry.mode & 0o700 == 0o700:
                self._tree.set_mode(entry)
                self._opened.forget(entry.path)
            else:
                self._opened.later(entry)
        elif entry.kind == Kind.SYMLINK:
            self._tree.make_symlink(entry)
        else:
            self._tree.write_file(entry, ())

    def _attempt(self, entry: Entry, make: Callable[[Entry], None]) -> None:
        try:
            with full_disk_is_an_error():
                make(entry)
        except (OSError, InTheWay) as error:
            self.placed.problems.append((entry.path, getattr(error, "strerror", None) or str(error)))

    def _lacking_chunks(self, entry: Entry) -> tuple[ChunkRef, ...]:
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
            lacking = self._seed(entry, former, descriptor)
        finally:
            os.close(descriptor)
        if is_small and len(lacking) == len(entry.chunks):
            self._tree.discard(temporary)
            return lacking
        piece_count = len(list(split_file(entry, lacking)))
        self._large[entry.path] = large = _Large(entry, temporary, piece_count)
        if not piece_count:
            self._finish_large(large)
        return lacking

    def _seed(self, entry: Entry, former: Entry | None, descriptor: int) -> tuple[ChunkRef, ...]:
        """Copy the chunks that the older file at this path holds; returns the others. Every byte is verified."""
        if former is None:
            return entry.chunks
        places = _places(former)
        try:
            source = self._tree.open_file(entry)
        except OSError:
            return entry.chunks
        lacking: list[ChunkRef] = []
        offset = 0
        try:
            for chunk in entry.chunks:
                place = places.get(chunk.hash)
                data = b"" if place is None else os.pread(source, chunk.plain_bytes, place)
                if place is not None and blake3(data).digest() == chunk.hash:
                    write_all(descriptor, data, offset)
                else:
                    lacking.append(chunk)
                offset += chunk.plain_bytes
        finally:
            os.close(source)
        return tuple(lacking)

    def _job(self, plan: FetchPlan) -> FetchJob:
        temporaries = {
            piece.entry.path: self._large[piece.entry.path].temporary for piece in plan.pieces if not piece.is_whole
        }
        connect = self._connect or Connect(self._dataset.store.url)
        return FetchJob(connect, self._dataset.root, self._tree.top, plan, temporaries, self._fence)

    def _take(self, result: FetchResult) -> None:
        placed = self.placed
        placed.meter.add(result.meter)
        placed.problems += result.problems
        placed.fetch_requests += result.plan.range_count
        placed.fetched_bytes += result.plan.range_bytes
        for piece in result.plan.pieces:
            self._done_bytes += sum(chunk.plain_bytes for chunk in piece.chunks)
            if not piece.is_whole:
                large = self._large[piece.entry.path]
                large.pieces_left -= 1
                if not large.pieces_left:
                    self._finish_large(large)

    def _finish_large(self, large: _Large) -> None:
        del self._large[large.entry.path]
        if large.pieces_left or large.entry.path in {path for path, _ in self.placed.problems}:
            self._tree.discard(large.temporary)
            return
        descriptor = self._tree.open_temporary(large.temporary)
        try:
            self._attempt(large.entry, lambda entry: self._tree.finish_file(large.temporary, descriptor, entry))
        finally:
            os.close(descriptor)


def _places(former: Entry) -> dict[bytes, int]:
    """Where each chunk of an older version of a file begins in it."""
    places: dict[bytes, int] = {}
    offset = 0
    for chunk in former.chunks:
        places.setdefault(chunk.hash, offset)
        offset += chunk.plain_bytes
    return places
