"""The part of repacking that runs in worker processes: chunks from old packs into a new one, verified, as stored."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.names import pack_key
from synclib.core.pack import PackBuilder, PackInfo, decode_chunk
from synclib.core.plan import Piece, coalesce
from synclib.engine.host import Connect, connect_once
from synclib.errors import BoxlinkError
from synclib.store.base import Store
from synclib.store.meter import Meter


@dataclass(frozen=True)
class RepackJob:
    """``chunks``, in path order, that become the pack ``ulid``; at most a pack's bytes."""

    connect: Connect
    root: str
    ulid: bytes
    chunks: list[ChunkRef]


@dataclass
class RepackResult:
    """The new pack, and where each chunk of the job was (pack, offset) and now is, in the same order."""

    info: PackInfo
    places: list[tuple[bytes, int]]
    chunks: list[ChunkRef]
    meter: Meter = field(default_factory=Meter)


def run_repack_job(job: RepackJob) -> RepackResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    result = repack(job, store)
    result.meter.add(meter.take())
    return result


def repack(job: RepackJob, store: Store) -> RepackResult:
    stored = _live_bytes(job, store)
    builder = PackBuilder(job.ulid)
    moved: list[ChunkRef] = []
    for chunk in job.chunks:
        data = stored.pop((chunk.pack, chunk.offset))
        try:
            plain = decode_chunk(chunk, data)
        except BoxlinkError as error:
            error.key = pack_key(job.root, ulid_text(chunk.pack))
            raise
        moved.append(builder.add(chunk.hash, plain, data, Codec(chunk.codec)))
    packed, info = builder.finish()
    store.put(pack_key(job.root, ulid_text(job.ulid)), packed)
    return RepackResult(info, [(chunk.pack, chunk.offset) for chunk in job.chunks], moved)


def _live_bytes(job: RepackJob, store: Store) -> dict[tuple[bytes, int], bytes]:
    """The stored bytes of each chunk by its place. What is read with them, for it lies between, is let go range by
    range: of sparse packs it is far more than they are."""
    spans = coalesce([Piece(Entry(b"", b"", Kind.FILE), tuple(job.chunks), 0, is_whole=False)])
    wanted: dict[bytes, list[ChunkRef]] = {}
    for chunk in sorted(job.chunks, key=lambda chunk: chunk.offset):
        wanted.setdefault(chunk.pack, []).append(chunk)
    found: dict[tuple[bytes, int], bytes] = {}
    for pack, ranges in spans.items():
        chunks = deque(wanted[pack])
        for start, stop in ranges:
            data = memoryview(store.get_ranges(pack_key(job.root, ulid_text(pack)), [(start, stop)])[0])
            while chunks and chunks[0].offset < stop:
                chunk = chunks.popleft()
                at = chunk.offset - start
                found[pack, chunk.offset] = bytes(data[at : at + chunk.stored_bytes])
    return found
