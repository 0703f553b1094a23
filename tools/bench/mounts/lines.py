"""What is done with each mount, and how long it takes: a machine with empty caches first, then one that has read."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.bench.mounts.contenders import Contender
from tools.bench.mounts.data import LARGE

_FAULT_BYTES = 4096
_READ_BYTES = 1 << 20
_READERS = 16


@dataclass(frozen=True)
class Amounts:
    """How many files each line reads. ``paths``: all of them, in order; ``boot``: of a start-up, scattered."""

    paths: Sequence[str]
    boot: Sequence[str]
    faults: int
    small: int

    def first(self, chance: random.Random) -> str:
        return chance.choice(self.paths)


def seconds_of(contender: Contender, place: Path, amounts: Amounts, chance: random.Random) -> dict[str, float]:
    """All lines of one contender, in one round; caches are below ``place``, which is empty."""
    taken: dict[str, float] = {}
    first = amounts.first(chance)
    taken["start and first byte"] = _timed(lambda: _start_and_read(contender, place / "one", first))
    taken["files of a start-up, one reader"] = _timed(lambda: _read_all(contender.files, amounts.boot, 1))
    contender.stop()
    contender.start(place / "two")
    taken["the same, 16 readers"] = _timed(lambda: _read_all(contender.files, amounts.boot, _READERS))
    at_once = chance.sample(amounts.paths, amounts.faults)
    taken["faults of 4 KiB at once"] = _timed(lambda: _at_once(contender.files, at_once))
    begin = chance.randrange(len(amounts.paths) - amounts.small)
    some = amounts.paths[begin : begin + amounts.small]
    taken["small files in order, 16 readers"] = _timed(lambda: _read_all(contender.files, some, _READERS))
    taken["one large file from its beginning"] = _timed(lambda: _read_on(contender.files / LARGE))
    taken["find"] = _timed(lambda: _find(contender.files))
    _drop_page_cache()
    taken["small files once more, page cache dropped"] = _timed(lambda: _read_all(contender.files, some, _READERS))
    taken["kill -9, and those files again"] = _timed(lambda: _again(contender, some))
    contender.stop()
    return taken


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _start_and_read(contender: Contender, home: Path, path: str) -> None:
    contender.start(home)
    with open(contender.files / path, "rb", buffering=0) as file:
        if len(file.read(1)) != 1:
            raise SystemExit(f"bench: {contender.name} reads nothing")


def _read_all(top: Path, paths: Sequence[str], readers: int) -> None:
    """Each file whole."""
    with ThreadPoolExecutor(readers) as pool:
        lengths = list(pool.map(lambda path: len((top / path).read_bytes()), paths))
    if not all(lengths):
        raise SystemExit(f"bench: a file below {top} is empty")


def _at_once(top: Path, paths: Sequence[str]) -> None:
    """A reader each, none of which begins before all are there."""
    ready = threading.Barrier(len(paths))

    def fault(path: str) -> int:
        ready.wait()
        descriptor = os.open(top / path, os.O_RDONLY)
        try:
            return len(os.pread(descriptor, _FAULT_BYTES, 8192))
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(len(paths)) as pool:
        if set(pool.map(fault, paths)) != {_FAULT_BYTES}:
            raise SystemExit(f"bench: a file below {top} is short")


def _read_on(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(_READ_BYTES):
            pass


def _find(top: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(top))


def _again(contender: Contender, paths: Sequence[str]) -> None:
    contender.kill()
    contender.begin()
    _read_all(contender.files, paths, _READERS)


def _drop_page_cache() -> None:
    """proc_sys_vm(5), ``drop_caches``: pages, directory entries and inodes that are not in use."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
