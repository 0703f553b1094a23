"""The part of a restore that runs in worker processes: fetch ranges, verify chunks, write files."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.pack import decode_chunk
from synclib.core.plan import FetchPlan, Piece
from synclib.core.zeros import is_zeros
from synclib.disk.faults import disk_error, is_of_the_process
from synclib.disk.held import writing
from synclib.disk.tree import InTheWay, Tree, write_all
from synclib.engine.host import Connect, connect_once
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.store.base import Buffer, Store
from synclib.store.meter import Meter

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FetchPlan)


@dataclass(frozen=True)
class FetchJob:
    """A plan's job; ``temporaries`` names, by path, the files that pieces of large files go to."""

    connect: Connect
    root: str
    top: bytes
    plan: bytes  # an encoded FetchPlan: pickling so many small values would cost more than fetching them
    temporaries: dict[bytes, bytes]
    fence: bytes  # what the lock file holds while this restore is the one at work
    seeds: tuple[bytes, ...] = ()  # roots of datasets on this machine whose packs are read before the store's


@dataclass
class FetchResult:
    """What a job did. ``problems`` has (path, reason) of files that could not be made as they should be, ``damaged``
    (path, error) of those whose bytes the store does not have."""

    problems: list[tuple[bytes, str]] = field(default_factory=list)
    damaged: list[tuple[bytes, Corrupt | Missing]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


def encode_plan(plan: FetchPlan) -> bytes:
    return _encoder.encode(plan)


def run_fetch_job(job: FetchJob) -> FetchResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    with writing(job.top, job.fence):
        result = fetch_files(job, store)
    result.meter.add(meter.take())
    return result


def fetch_files(job: FetchJob, store: Store) -> FetchResult:
    result = FetchResult()
    plan = _decoder.decode(job.plan)
    ranges = _Ranges(store, job, plan)
    tree = Tree(job.top)
    try:
        for piece in plan.pieces:
            try:
                _write_piece(tree, piece, ranges, job.temporaries)
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
    finally:
        tree.close()
    result.problems += tree.problems
    return result


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
                with open(path, "rb", buffering=0) as file:
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
            error.hint = f"boxlink verify {self._root.partition('/')[2]} --data names all that is damaged"
            raise
