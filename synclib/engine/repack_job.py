"""The part of repacking that runs in worker processes: chunks from old packs into a new one, verified, as stored."""

from __future__ import annotations

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
    spans = coalesce([Piece(Entry(b"", b"", Kind.FILE), tuple(job.chunks), 0, is_whole=False)])
    data = {pack: store.get_ranges(pack_key(job.root, ulid_text(pack)), ranges) for pack, ranges in spans.items()}
    builder = PackBuilder(job.ulid)
    moved: list[ChunkRef] = []
    for chunk in job.chunks:
        at = next(index for index, (start, stop) in enumerate(spans[chunk.pack]) if start <= chunk.offset < stop)
        start = chunk.offset - spans[chunk.pack][at][0]
        stored = memoryview(data[chunk.pack][at])[start : start + chunk.stored_bytes]
        try:
            plain = decode_chunk(chunk, stored)
        except BoxlinkError as error:
            error.key = pack_key(job.root, ulid_text(chunk.pack))
            raise
        moved.append(builder.add(chunk.hash, plain, stored, Codec(chunk.codec)))
    packed, info = builder.finish()
    store.put(pack_key(job.root, ulid_text(job.ulid)), packed)
    return RepackResult(info, [(chunk.pack, chunk.offset) for chunk in job.chunks], moved)
