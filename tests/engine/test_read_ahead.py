"""A worker fetches the ranges of its next plan while it writes the files of one, and of no other."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from synclib.core.entry import Kind
from synclib.core.plan import RANGE_BYTES_MAX, FetchPlan, Piece, coalesce, plans_per_job
from synclib.engine.fetch_job import FetchJob, encode_plans, fetch_files
from synclib.engine.host import Connect
from synclib.errors import Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.kit import Kit, read_tree

PATIENCE_S = 10
FILES = {b"%d" % number: b"%d" % number * 100 for number in range(5)}


class Watched(MemoryStore):
    """Says when a range of a pack is asked for."""

    def __init__(self) -> None:
        super().__init__("")
        self.asked = threading.Semaphore(0)
        self.is_asked: Callable[[int], None] = lambda number: None
        self.count = 0

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if "/pack/" in key:
            self.count += 1
            self.is_asked(self.count)
            self.asked.release()
        return super().get_ranges(key, ranges)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    store = Watched()
    store.put("boxlink.json", b"{}")
    kit = Kit(tmp_path / "kit", store)
    kit.write(dict(FILES))
    kit.publish()
    return kit


def job_of(kit: Kit, target: Path) -> FetchJob:
    """A plan for each file."""
    target.mkdir()
    chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, kit.dataset.read_head().manifest.runs)
    pieces = [Piece(entry, entry.chunks, 0, is_whole=True) for entry in chain.entries() if entry.kind == Kind.FILE]
    plans = encode_plans([FetchPlan(coalesce([piece]), [piece]) for piece in pieces])
    return FetchJob(7, Connect("memory://x"), kit.dataset.root, os.fsencode(target), plans, {}, b"")


def test_the_next_plan_is_asked_for_while_one_is_written_and_no_other(kit: Kit, tmp_path: Path) -> None:
    store, target = kit.store, tmp_path / "out"
    assert isinstance(store, Watched)
    written: list[int] = []

    def is_asked(number: int) -> None:
        # Bytes of two plans at most: the one before the last is written.
        assert len(read_tree(target)) >= number - 2

    store.is_asked = is_asked

    @contextmanager
    def fenced() -> Iterator[None]:
        is_last = len(written) == len(FILES) - 1
        assert store.asked.acquire(timeout=PATIENCE_S)
        if not is_last:
            # Nothing of this plan is written before the next one was asked for: they do overlap.
            assert store.asked.acquire(timeout=PATIENCE_S)
            store.asked.release()
        yield
        written.append(len(read_tree(target)))

    result = fetch_files(job_of(kit, target), store, fenced)
    assert (result.number, result.problems, result.damaged) == (7, [], [])
    assert written == [1, 2, 3, 4, 5]
    assert read_tree(target) == FILES
    assert store.count == len(FILES)


def test_a_store_that_fails_ends_the_job_after_what_came_before(kit: Kit, tmp_path: Path) -> None:
    store, target = kit.store, tmp_path / "out"
    assert isinstance(store, Watched)

    def is_asked(number: int) -> None:
        if number == 3:
            raise Unavailable("it does not answer")

    store.is_asked = is_asked
    with pytest.raises(Unavailable):
        fetch_files(job_of(kit, target), store)
    assert read_tree(target) == {path: FILES[path] for path in (b"0", b"1")}
    assert store.count == 3


def test_a_full_disk_asks_for_no_more(kit: Kit, tmp_path: Path) -> None:
    store, target = kit.store, tmp_path / "out"
    assert isinstance(store, Watched)

    @contextmanager
    def fenced() -> Iterator[None]:
        raise OSError("no")
        yield

    with pytest.raises(OSError, match="no"):
        fetch_files(job_of(kit, target), store, fenced)
    assert read_tree(target) == {}
    assert store.count <= 2


def test_small_restores_are_dealt_out_evenly_and_large_ones_in_stretches() -> None:
    assert plans_per_job(0, 4) == 1
    assert plans_per_job(16 * RANGE_BYTES_MAX, 4) == 1
    assert plans_per_job(32 * RANGE_BYTES_MAX, 4) == 2
    assert plans_per_job(10_000 * RANGE_BYTES_MAX, 4) == 4
    assert plans_per_job(64 * RANGE_BYTES_MAX, 32) == 1
