"""The part of a restore that runs in worker processes: fetch ranges, verify chunks, write files.

A job has several plans: while the files of one are written, a thread fetches the ranges of the next.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.pack import decode_chunk
from synclib.core.plan import FetchPlan, Piece
from synclib.core.zeros import is_zeros
from synclib.disk.faults import disk_error, is_of_the_process
from synclib.disk.held import writing
from synclib.disk.regular import open_regular
from synclib.disk.tree import InTheWay, Tree, write_all
from synclib.engine.host import Connect, connect_once
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.store.base import Buffer, Store
from synclib.store.meter import Meter

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[FetchPlan])


@dataclass(frozen=True)
class FetchJob:
    """Plans, to be done one after the other. ``temporaries`` names, by path, the files that pieces of large files go
    to; ``number`` says which job a result is of."""

    number: int
    connect: Connect
    root: str
    top: bytes
    plans: bytes  # encoded FetchPlans: pickling so many small values would cost more than fetching them
    temporaries: dict[bytes, bytes]
    fence: bytes  # what the lock file holds while this restore is the one at work
    seeds: tuple[bytes, ...] = ()  # roots of datasets on this machine whose packs are read before the store's


@dataclass
class FetchResult:
    """What a job did. ``problems`` has (path, reason) of files that could not be made as they should be, ``damaged``
    (path, error) of those whose bytes the store does not have."""

    number: int
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    damaged: list[tuple[bytes, Corrupt | Missing]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


def encode_plans(plans: list[FetchPlan]) -> bytes:
    return _encoder.encode(plans)


def run_fetch_job(job: FetchJob) -> FetchResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    result = fetch_files(job, store, lambda: writing(job.top, job.fence))
    result.meter.add(meter.take())
    return result


def fetch_files(
    job: FetchJob, store: Store, fenced: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
) -> FetchResult:
    """Do a job. ``fenced`` is entered for the writing of each plan's files."""
    result = FetchResult(job.number)
    plans = _decoder.decode(job.plans)
    tree = Tree(job.top)
    with contextlib.closing(tree), _ReadAhead(store, job, plans) as ahead:
        for plan in plans:
            ranges = ahead.take()
            with fenced():
                _write_pieces(tree, plan, ranges, job.temporaries, result)
            # Before the next are taken, and others asked for: at most two plans' bytes are here.
            del ranges
    result.problems += tree.problems
    return result


def _write_pieces(
    tree: Tree, plan: FetchPlan, ranges: _Ranges, temporaries: dict[bytes, bytes], result: FetchResult
) -> None:
    for piece in plan.pieces:
        try:
            _write_piece(tree, piece, ranges, temporaries)
        except OSError as error:
            if is_of_the_process(error):
                raise disk_error(error) from error
            result.problems.append((piece.entry.path, error.strerror or str(error)))
        except InTheWay as error:
            result.problems.append((piece.entry.path, str(error)))
        except (Corrupt, Missing) as error:
            result.damaged.append((piece.entry.path, _plain(error)))
        except BoxlinkError as error:
            error.path = error.path or os.fsdecode(piece.entry.path)
            raise


def _plain(error: Corrupt | Missing) -> Corrupt | Missing:
    """An error without what led to it: it goes to another process, perhaps many times."""
    return type(error)(error.message, hint=error.hint, key=error.key, path=error.path)


def _write_piece(tree: Tree, piece: Piece, ranges: _Ranges, temporaries: dict[bytes, bytes]) -> None:
    if piece.is_whole:
        tree.write_file(piece.entry, ranges.plain(piece.chunks))
        return
    descriptor = tree.open_temporary(temporaries[piece.entry.path])
    try:
        offset = piece.file_offset
        for plain in ranges.plain(piece.chunks):
            # What is zero is a hole already: a temporary file is cut to its length when it is made.
            if not is_zeros(plain):
                write_all(descriptor, plain, offset)
            offset += len(plain)
    finally:
        os.close(descriptor)


class _ReadAhead:
    """The ranges of plans, in their order: those of the next plan are being fetched when one's are taken."""

    def __init__(self, store: Store, job: FetchJob, plans: list[FetchPlan]) -> None:
        self._fetches = iter([functools.partial(_Ranges, store, job, plan) for plan in plans])
        self._executor: ThreadPoolExecutor | None = None
        self._next: Future[_Ranges] | None = None
        if len(plans) > 1:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(1)
            self._next = self._executor.submit(next(self._fetches))

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def take(self) -> _Ranges:
        if self._executor is None or self._next is None:
            return next(self._fetches)()
        ranges = self._next.result()
        following = next(self._fetches, None)
        self._next = None if following is None else self._executor.submit(following)
        return ranges


class _Ranges:
    """The bytes of a plan's ranges, fetched at once; chunks come out of them verified."""

    def __init__(self, store: Store, job: FetchJob, plan: FetchPlan) -> None:
        self._store, self._root, self._plan, self._seeds = store, job.root, plan, job.seeds
        self._data: dict[bytes, list[Buffer]] = {}
        self._gone: dict[bytes, Missing] = {}
        for pack, spans in plan.ranges.items():
            try:
                found = self._seeded(pack, spans) or store.get_ranges(self._key(pack), spans)
                self._data[pack] = [memoryview(data) for data in found]
            except Missing as error:
                self._gone[pack] = error
            except Corrupt:
                # It is shorter than its runs say: some of its chunks may be there all the same.
                self._data[pack] = [b""] * len(spans)

    def _key(self, pack: bytes) -> str:
        return names.pack_key(self._root, ulid_text(pack))

    def _seeded(self, pack: bytes, spans: list[tuple[int, int]]) -> list[Buffer] | None:
        """The ranges from a pack on this machine; None where there is none that has them all."""
        for seed in self._seeds:
            path = os.path.join(seed, b"pack", ulid_text(pack).encode())
            try:
                with open(open_regular(path), "rb", buffering=0) as file:
                    found = [os.pread(file.fileno(), stop - start, start) for start, stop in spans]
            except OSError:
                continue
            if all(len(data) == stop - start for data, (start, stop) in zip(found, spans, strict=True)):
                return list(found)
        return None

    def plain(self, chunks: tuple[ChunkRef, ...]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            if (gone := self._gone.get(chunk.pack)) is not None:
                raise gone
            try:
                yield self._decode(chunk)
            except Corrupt:
                yield self._once_more(chunk)

    def _decode(self, chunk: ChunkRef) -> bytes | memoryview:
        spans = self._plan.ranges[chunk.pack]
        at = 0 if len(spans) == 1 else bisect.bisect_right(spans, chunk.offset, key=lambda span: span[0]) - 1
        start = chunk.offset - spans[at][0]
        return decode_chunk(chunk, self._data[chunk.pack][at][start : start + chunk.stored_bytes])

    def _once_more(self, chunk: ChunkRef) -> bytes | memoryview:
        """From the store, and alone: the damage may have come on the way, or be a seed's."""
        key = self._key(chunk.pack)
        try:
            (data,) = self._store.get_ranges(key, [(chunk.offset, chunk.offset + chunk.stored_bytes)])
            return decode_chunk(chunk, data)
        except Corrupt as error:
            error.key = key
            error.hint = _hint_of_damage(self._root)
            raise


def _hint_of_damage(root: str) -> str:
    kind, _, name = root.partition("/")
    if kind == "release":
        return f"see who may write to the store; boxlink release ls {name} lists other seqs of it"
    return f"boxlink verify {name} --data names all that is damaged"
