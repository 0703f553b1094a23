"""The second pass of a restore: make what is missing. Directories and links here, files' bytes in workers."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from synclib.core.damage import Damage
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.flights import Flights
from synclib.core.plan import (
    WINDOW_BYTES,
    WINDOW_FILES,
    FetchPlan,
    Piece,
    is_one_piece,
    plan_window,
    plans_per_job,
    split_file,
)
from synclib.disk.extras import left_out
from synclib.disk.faults import disk_error, full_disk_is_an_error, is_of_the_process
from synclib.disk.tree import InTheWay, Tree, part_name
from synclib.engine.fetch_job import FetchJob, FetchResult, encode_plans, fetch_files, run_fetch_job
from synclib.engine.host import Connect
from synclib.engine.large import Large, copy_from_older, lacking_of_part
from synclib.engine.links import Links
from synclib.engine.opened import Opened
from synclib.engine.seeds import Moved, SeedTrees, split_seeds
from synclib.engine.task import RestoreTask
from synclib.engine.workers import run_jobs, start_processes, worker_count
from synclib.lazy.chain import Chain
from synclib.store.meter import Meter

# Of a distant store, beside one for each processor: while it waits the others write. Each holds two ranges' bytes, some
# 70 MB with the interpreter.
_REMOTE_PROCESSES_MORE = 1


@dataclass
class Placed:
    """What was made; ``problems`` has (path, reason) of what could not be."""

    files: int = 0
    fetched_bytes: int = 0
    seeded_bytes: int = 0  # of files made whole of bytes that were here
    fetch_requests: int = 0
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)  # what only root can set: "owner", "xattr.trusted" and the like
    meter: Meter = field(default_factory=Meter)


def count_requests(missing: Iterable[Entry], placed: Placed) -> None:
    """Which ranges would be asked for, as far as that can be told without looking at older files."""
    wanted = ((entry, entry.chunks) for entry in missing if entry.kind == Kind.FILE)
    for plan in _windows(wanted):
        placed.fetch_requests += plan.range_count
        placed.fetched_bytes += plan.range_bytes


def _windows(wanted: Iterator[tuple[Entry, tuple[ChunkRef, ...]]]) -> Iterator[FetchPlan]:
    """Plans for the wanted chunks of files, a window of them at a time."""
    window: list[Piece] = []
    size = 0
    for entry, chunks in wanted:
        for piece in split_file(entry, chunks):
            window.append(piece)
            for chunk in piece.chunks:
                size += chunk.stored_bytes
        if size >= WINDOW_BYTES or len(window) >= WINDOW_FILES:
            yield from plan_window(window)
            window, size = [], 0
    yield from plan_window(window)


class Placement:
    """Makes what is missing of one seq in one directory. ``old``: the chain that stood there, for its bytes."""

    def __init__(self, task: RestoreTask, tree: Tree, opened: Opened, fence: bytes, old: Chain, moved: Moved) -> None:
        self._task, self._dataset, self._tree, self._fence = task, task.dataset, tree, fence
        self._opened, self._old, self._moved = opened, old, moved
        tops, self._roots = split_seeds(task.options.seeds)
        self._seeds = SeedTrees(tops)
        self._large: dict[bytes, Large] = {}
        self._plans: dict[int, list[FetchPlan]] = {}  # of the jobs at work, by their numbers
        self._damage = Damage()
        self._done_bytes = 0
        self.placed = Placed()

    def close(self) -> None:
        self._seeds.close()

    def make(self, missing: Iterable[Entry], links: Links, need_bytes: int) -> Placed:
        """Corrupt or Missing where the store does not have a file's bytes, after all others are made."""
        is_remote = self._dataset.store.url.startswith("s3:")
        count = worker_count() + (_REMOTE_PROCESSES_MORE if is_remote else 0)
        flights = Flights(worker_count() + 2, count + 2)
        connect = self._task.connect
        start = None if connect is None else lambda: start_processes("synclib.engine.fetch_job", count)
        store = self._dataset.store
        # There is nothing to wait for where the store is at hand, or the work is here.
        at_once = plans_per_job(need_bytes, count) if is_remote and start is not None else 1
        jobs = self._jobs(_windows(self._wanted(missing)), at_once)
        for result in run_jobs(
            jobs, lambda job: fetch_files(job, store), run_fetch_job, start, lambda: flights.limit, is_ordered=False
        ):
            plans = self._plans.pop(result.number)
            # Every try is counted: what was not planned was tried again.
            planned = sum(plan.range_count for plan in plans)
            flights.landed(is_pushed_back=result.meter.requests["get"] > planned)
            self._take(result, plans)
            self._task.progress("restored", self._done_bytes, need_bytes)
        for large in list(self._large.values()):
            self._finish_large(large)
        for link in links.missing:
            self._opened.open_up(link.entry.directory)
            self._attempt(link.entry, functools.partial(self._tree.link_file, *link.source))
        for entry in self._opened.modes():
            self._attempt(entry, self._tree.set_mode)
        self.placed.problems += self._tree.problems
        self._damage.raise_if_any(f"boxlink verify {self._dataset.name} --data names all that is damaged")
        if not self._task.options.path:
            self._tree.sweep()
        return self.placed

    def _wanted(self, missing: Iterable[Entry]) -> Iterator[tuple[Entry, tuple[ChunkRef, ...]]]:
        """Make all that needs no fetching; the chunks of the rest."""
        for entry in missing:
            self._opened.open_up(entry.directory)
            if entry.extra:
                self.placed.left_out.update(left_out(entry, self._tree.is_root))
            if entry.kind == Kind.FILE:
                self.placed.files += 1
                if entry.chunks:
                    if not self._is_seeded(entry):
                        yield entry, self._lacking_chunks(entry)
                    continue
            self._attempt(entry, self._make)

    def _is_seeded(self, entry: Entry) -> bool:
        """Whether a file was made of bytes that are here; one that could not be made is a problem, and done too."""
        found = False

        def place(entry: Entry) -> None:
            nonlocal found
            found = self._moved.place(entry) or self._seeds.place(self._tree, entry)

        problem_count = len(self.placed.problems)
        self._attempt(entry, place)
        if found:
            self._done_bytes += entry.size
            self.placed.seeded_bytes += entry.size
        return found or len(self.placed.problems) > problem_count

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
        except OSError as error:
            if is_of_the_process(error):
                raise disk_error(error) from error
            self.placed.problems.append((entry.path, error.strerror or str(error)))
        except InTheWay as error:
            self.placed.problems.append((entry.path, str(error)))

    def _lacking_chunks(self, entry: Entry) -> tuple[ChunkRef, ...]:
        """The chunks of a file that have to be fetched. A file of several pieces has a temporary file, with what an
        older version of it or a killed restore has left already."""
        if len(entry.chunks) == 1:
            return entry.chunks
        is_small = is_one_piece(entry)
        former = self._old.lookup(entry.key)
        if former is not None and former.kind != Kind.FILE:
            former = None
        if is_small and former is None and not self._seeds:
            return entry.chunks
        temporary = part_name(entry)
        descriptor = self._tree.open_part(temporary)
        try:
            lacking = lacking_of_part(descriptor, entry)
            if former is not None:
                lacking = copy_from_older(self._tree, entry, former, lacking, descriptor)
            if lacking:
                lacking = self._seeds.copy_chunks(entry, lacking, descriptor)
        finally:
            os.close(descriptor)
        if is_small and len(lacking) == len(entry.chunks):
            self._tree.discard(temporary)
            return lacking
        large = Large(entry, temporary, sum(1 for _ in split_file(entry, lacking)))
        self._large[entry.path] = large
        if not large.pieces_left:
            self._finish_large(large)
        return lacking

    def _jobs(self, plans: Iterator[FetchPlan], at_once: int) -> Iterator[FetchJob]:
        connect = self._task.connect or Connect(self._dataset.store.url)
        for number in itertools.count():
            found = list(itertools.islice(plans, at_once))
            if not found:
                return
            temporaries = {
                piece.entry.path: self._large[piece.entry.path].temporary
                for plan in found
                for piece in plan.pieces
                if not piece.is_whole
            }
            self._plans[number] = found
            yield FetchJob(
                number,
                connect,
                self._dataset.root,
                self._tree.top,
                encode_plans(found),
                temporaries,
                self._fence,
                self._roots,
            )

    def _take(self, result: FetchResult, plans: list[FetchPlan]) -> None:
        placed = self.placed
        placed.meter.add(result.meter)
        placed.problems += result.problems
        placed.fetch_requests += sum(plan.range_count for plan in plans)
        placed.fetched_bytes += sum(plan.range_bytes for plan in plans)
        broken = {path for path, _ in result.problems}
        for path, error in result.damaged:
            self._damage.add(path, error)
            broken.add(path)
        for piece in itertools.chain.from_iterable(plan.pieces for plan in plans):
            for chunk in piece.chunks:
                self._done_bytes += chunk.plain_bytes
            if not piece.is_whole:
                large = self._large[piece.entry.path]
                large.pieces_left -= 1
                large.is_broken |= piece.entry.path in broken
                if not large.pieces_left:
                    self._finish_large(large)

    def _finish_large(self, large: Large) -> None:
        """Place a file that arrived in pieces. What is there of one that did not, the next restore uses."""
        del self._large[large.entry.path]
        if large.pieces_left or large.is_broken:
            return
        descriptor = self._tree.open_temporary(large.temporary)
        try:
            self._attempt(large.entry, lambda entry: self._tree.finish_file(large.temporary, descriptor, entry))
        finally:
            os.close(descriptor)
