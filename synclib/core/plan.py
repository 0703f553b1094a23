"""From the files that a restore lacks to the ranges it asks for: never one request a small file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from synclib.core.entry import ChunkRef, Entry

# AWS recommends ranges of 8-16 MB. A full pack has 32 MiB and a bit: it is two ranges, without a third of some bytes.
RANGE_BYTES_MAX = 17 << 20
# A smaller gap is cheaper to read than another request.
GAP_BYTES_MAX = 256 << 10
# What is planned together: enough that neighbours in a pack meet, little enough to hold in memory.
WINDOW_BYTES = 256 << 20
WINDOW_FILES = 20_000
_PLANS_PER_JOB_MAX = 4
_JOBS_PER_PROCESS_MIN = 4


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Chunks of one file that go to ``file_offset`` and on. ``is_whole``: they are all of it."""

    entry: Entry
    chunks: tuple[ChunkRef, ...]
    file_offset: int
    is_whole: bool


class FetchPlan(msgspec.Struct, frozen=True):
    """What is fetched at once: ranges of packs, and the pieces that they hold all bytes of."""

    ranges: dict[bytes, list[tuple[int, int]]]
    pieces: list[Piece]

    @property
    def range_count(self) -> int:
        return sum(map(len, self.ranges.values()))

    @property
    def range_bytes(self) -> int:
        return sum(stop - start for ranges in self.ranges.values() for start, stop in ranges)


def is_one_piece(entry: Entry) -> bool:
    """Whether all of a file can be fetched at once: its ranges are no more than one range's bytes."""
    return len(entry.chunks) == 1 or _read_bytes(None, entry.chunks) <= RANGE_BYTES_MAX


def _read_bytes(last: ChunkRef | None, chunks: tuple[ChunkRef, ...]) -> int:
    """What has to be read at most for chunks that come after ``last``: their bytes, and the gaps that
    :func:`coalesce` may join them over."""
    size = 0
    for chunk in chunks:
        size += chunk.stored_bytes
        if last is not None and last.pack == chunk.pack:
            size += min(GAP_BYTES_MAX, abs(chunk.offset - last.offset - last.stored_bytes))
        last = chunk
    return size


def split_file(entry: Entry, wanted: tuple[ChunkRef, ...]) -> Iterator[Piece]:
    """Pieces of at most one range's bytes that hold the wanted chunks of a file, whole if that is possible."""
    if len(wanted) == len(entry.chunks) and is_one_piece(entry):
        yield Piece(entry, entry.chunks, 0, is_whole=True)
        return
    missing = {chunk.hash for chunk in wanted}
    offset = start = size = 0
    run: list[ChunkRef] = []
    for chunk in entry.chunks:
        is_missing = chunk.hash in missing
        cost = _read_bytes(run[-1] if run else None, (chunk,))
        if run and (not is_missing or size + cost > RANGE_BYTES_MAX or chunk.pack != run[-1].pack):
            yield Piece(entry, tuple(run), start, is_whole=False)
            run, size = [], 0
        if is_missing:
            start = start if run else offset
            size += cost if run else chunk.stored_bytes
            run.append(chunk)
        offset += chunk.plain_bytes
    if run:
        yield Piece(entry, tuple(run), start, is_whole=False)


def plan_window(pieces: list[Piece]) -> Iterator[FetchPlan]:
    """Group pieces by pack, in the order of offsets, into plans of about one range's bytes."""
    by_pack: dict[bytes, list[Piece]] = {}
    scattered: list[Piece] = []
    for piece in pieces:
        if len(piece.chunks) == 1 or len({chunk.pack for chunk in piece.chunks}) == 1:
            by_pack.setdefault(piece.chunks[0].pack, []).append(piece)
        else:
            scattered.append(piece)
    for group in by_pack.values():
        group.sort(key=lambda piece: piece.chunks[0].offset)
        yield from _cut(group)
    yield from _cut(scattered)


def plans_per_job(need_bytes: int, processes: int) -> int:
    """How many plans a worker is given at once, so that it can fetch one while it writes the one before; few enough
    that all workers have several jobs, and end at about the same time."""
    return min(_PLANS_PER_JOB_MAX, max(1, need_bytes // (_JOBS_PER_PROCESS_MIN * processes * RANGE_BYTES_MAX)))


def _cut(group: list[Piece]) -> Iterator[FetchPlan]:
    job: list[Piece] = []
    size = 0
    for piece in group:
        cost = _read_bytes(job[-1].chunks[-1] if job else None, piece.chunks)
        if job and size + cost > RANGE_BYTES_MAX:
            yield FetchPlan(coalesce(job), job)
            job, size = [], 0
            cost = _read_bytes(None, piece.chunks)
        job.append(piece)
        size += cost
    if job:
        yield FetchPlan(coalesce(job), job)


def coalesce(pieces: list[Piece]) -> dict[bytes, list[tuple[int, int]]]:
    """The fewest ranges, by pack, that hold all chunks: neighbours are joined over small gaps."""
    return coalesce_chunks(chunk for piece in pieces for chunk in piece.chunks)


def coalesce_chunks(chunks: Iterable[ChunkRef]) -> dict[bytes, list[tuple[int, int]]]:
    """The fewest ranges, by pack, that hold all of these."""
    spans: dict[bytes, list[tuple[int, int]]] = {}
    for chunk in chunks:
        spans.setdefault(chunk.pack, []).append((chunk.offset, chunk.offset + chunk.stored_bytes))
    joined: dict[bytes, list[tuple[int, int]]] = {}
    for pack, found in spans.items():
        found.sort()
        ranges = joined[pack] = [found[0]]
        for start, stop in found[1:]:
            first, last = ranges[-1]
            if start - last <= GAP_BYTES_MAX and max(stop, last) - first <= RANGE_BYTES_MAX:
                ranges[-1] = (first, max(last, stop))
            else:
                ranges.append((start, stop))
    return joined
