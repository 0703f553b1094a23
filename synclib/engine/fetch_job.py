"""The part of a restore that runs in worker processes: fetch ranges, verify chunks, write files."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef
from synclib.core.pack import decode_chunk
from synclib.core.plan import FetchPlan, Piece
from synclib.disk.held import writing
from synclib.disk.tree import InTheWay, Tree, write_all
from synclib.engine.host import Connect, connect_once
from synclib.errors import BoxlinkError, Corrupt
from synclib.store.base import Store
from synclib.store.meter import Meter


@dataclass(frozen=True)
class FetchJob:
    """A plan's job; ``temporaries`` names, by path, the files that pieces of large files go to."""

    connect: Connect
    root: str
    top: bytes
    plan: FetchPlan
    temporaries: dict[bytes, bytes]
    fence: bytes  # what the lock file holds while this restore is the one at work


@dataclass
class FetchResult:
    """What a job did; ``problems`` has (path, reason) of files that could not be written."""

    plan: FetchPlan
    problems: list[tuple[bytes, str]] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


def run_fetch_job(job: FetchJob) -> FetchResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    with writing(job.top, job.fence):
        result = fetch_files(job, store)
    result.meter.add(meter.take())
    return result


def fetch_files(job: FetchJob, store: Store) -> FetchResult:
    result = FetchResult(job.plan)
    ranges = _Ranges(store, job.root, job.plan)
    tree = Tree(job.top)
    try:
        for piece in job.plan.pieces:
            try:
                _write_piece(tree, piece, ranges, job.temporaries)
            except (OSError, InTheWay) as error:
                result.problems.append((piece.entry.path, getattr(error, "strerror", None) or str(error)))
            except BoxlinkError as error:
                error.path = error.path or os.fsdecode(piece.entry.path)
                raise
    finally:
        tree.close()
    return result


def _write_piece(tree: Tree, piece: Piece, ranges: _Ranges, temporaries: dict[bytes, bytes]) -> None:
    if piece.is_whole:
        tree.write_file(piece.entry, ranges.plain(piece.chunks))
        return
    descriptor = tree.open_temporary(temporaries[piece.entry.path])
    try:
        offset = piece.file_offset
        for plain in ranges.plain(piece.chunks):
            write_all(descriptor, plain, offset)
            offset += len(plain)
    finally:
        os.close(descriptor)


class _Ranges:
    """The bytes of a plan's ranges, fetched at once; chunks come out of them verified."""

    def __init__(self, store: Store, root: str, plan: FetchPlan) -> None:
        self._store, self._root, self._plan = store, root, plan
        self._data: dict[bytes, list[memoryview]] = {}
        for pack in plan.ranges:
            self._fetch(pack)

    def _key(self, pack: bytes) -> str:
        return names.pack_key(self._root, ulid_text(pack))

    def _fetch(self, pack: bytes) -> None:
        self._data[pack] = [
            memoryview(data) for data in self._store.get_ranges(self._key(pack), self._plan.ranges[pack])
        ]

    def plain(self, chunks: tuple[ChunkRef, ...]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            try:
                yield self._decode(chunk)
            except Corrupt:
                # Once more: the damage may have come on the way.
                self._fetch(chunk.pack)
                try:
                    yield self._decode(chunk)
                except Corrupt as error:
                    error.key = self._key(chunk.pack)
                    error.hint = f"boxlink verify {self._root.partition('/')[2]} --data names all that is damaged"
                    raise

    def _decode(self, chunk: ChunkRef) -> bytes | memoryview:
        spans = self._plan.ranges[chunk.pack]
        at = bisect.bisect_right(spans, chunk.offset, key=lambda span: span[0]) - 1
        start = chunk.offset - spans[at][0]
        return decode_chunk(chunk, self._data[chunk.pack][at][start : start + chunk.stored_bytes])
