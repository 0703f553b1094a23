"""The part of publishing that runs in worker processes: read files, cut, hash, compress, pack, upload."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from synclib.clock import SystemClock, stamp_clock_ns, ulid_text
from synclib.core import names
from synclib.core.chunker import cut
from synclib.core.entry import CHUNK_BYTES_MAX, CHUNKS_PER_FILE_MAX, ChunkRef, Codec, Entry, Kind
from synclib.core.lease import owned_ulid
from synclib.core.pack import PACK_BYTES_TARGET, PackBuilder, PackInfo, encode_chunk
from synclib.disk.chunk_index import ChunkIndex
from synclib.disk.scan import Found
from synclib.engine.host import Connect, connect_once
from synclib.store.base import Store
from synclib.store.meter import Meter

# Plain bytes that wait for one look into the index.
_PENDING_BYTES = 8 << 20
# Linux's clock ticks every 10 ms at the slowest.
_TICK_MAX_S = 0.05


@dataclass(frozen=True)
class PackJob:
    """Files to read, in path order, from below ``top``; entries that need no reading pass through in their place."""

    connect: Connect
    root: str
    top: bytes
    prefix: bytes
    index_path: Path | None  # None where there is nothing to read
    session: str
    pack_names: bytes  # a ULID, drawn for this job: the names of its packs follow from it
    items: list[Found | Entry]


@dataclass
class PackResult:
    """Entries in the order of the job's items; ``skipped`` has (path, reason) of those that could not be read.

    ``packs`` are those that the job uploaded, and those of other jobs that its entries refer to: their results may
    come later.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    packs: list[PackInfo] = field(default_factory=list)
    read_bytes: int = 0
    meter: Meter = field(default_factory=Meter)


def run_pack_job(job: PackJob) -> PackResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    result = pack_files(job, store)
    result.meter.add(meter.take())
    return result


def pack_files(job: PackJob, store: Store) -> PackResult:
    if job.index_path is None:
        return PackResult([item for item in job.items if isinstance(item, Entry)])
    index = ChunkIndex(job.index_path, job.session)
    try:
        packer = _Packer(job, store, index)
        result = PackResult()
        read: list[tuple[Found, list[bytes]] | Entry] = []
        for item in job.items:
            if isinstance(item, Entry):
                read.append(item)
                continue
            hashes, problem = _read_file(job, item, packer)
            if problem:
                result.skipped.append((item.path, problem))
            else:
                read.append((item, hashes))
                result.read_bytes += item.size
        packer.finish()
        result.packs = packer.packs + index.packs(packer.foreign_packs)
    finally:
        index.close()
    result.entries = [item if isinstance(item, Entry) else _entry(*item, packer.placed) for item in read]
    return result


def _entry(found: Found, hashes: list[bytes], placed: dict[bytes, ChunkRef]) -> Entry:
    chunks = tuple(placed[chunk_hash] for chunk_hash in hashes)
    size = sum(chunk.plain_bytes for chunk in chunks)
    return Entry(found.directory, found.name, Kind.FILE, found.mode, found.mtime_ns, size, chunks)


def _read_file(job: PackJob, found: Found, packer: _Packer) -> tuple[list[bytes], str]:
    """(hashes of the chunks, problem): a file that changes while it is read is a problem, never a mixture."""
    relative = found.path[len(job.prefix) + 1 :] if job.prefix else found.path
    try:
        # O_NONBLOCK: a pipe that took the file's place must not make us wait for a writer.
        descriptor = os.open(os.path.join(job.top, relative), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return [], error.strerror or str(error)
    try:
        before = _settled(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return [], "it is no longer a file"
        is_moving = before.st_ctime_ns >= stamp_clock_ns()
        if is_moving or (before.st_mtime_ns, before.st_size) != (found.mtime_ns, found.size):
            return [], "it changed while it was published"
        hashes = [packer.add(piece) for piece in _pieces(descriptor, found.size)]
        after = os.fstat(descriptor)
    except OSError as error:
        return [], error.strerror or str(error)
    finally:
        os.close(descriptor)
    if (after.st_mtime_ns, after.st_ctime_ns, after.st_size) != (before.st_mtime_ns, before.st_ctime_ns, found.size):
        return [], "it changed while it was published"
    if packer.bytes_of(hashes) != found.size:
        return [], "it changed while it was published"
    if len(hashes) > CHUNKS_PER_FILE_MAX:
        return [], "it is too large for one entry"
    return hashes, ""


def _settled(descriptor: int) -> os.stat_result:
    """A file's status once the clock that stamps changes has moved on since its last one: a change that comes while it
    is read then shows in its times. Waits a tick of that clock at most; a file that changes all the time stays young.
    """
    clock = SystemClock()
    deadline = clock.monotonic() + _TICK_MAX_S
    while True:
        status = os.fstat(descriptor)
        if status.st_ctime_ns < stamp_clock_ns() or clock.monotonic() > deadline:
            return status
        clock.sleep(0.001)


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    if size <= CHUNK_BYTES_MAX:
        data = os.read(descriptor, size + 1)
        while len(data) <= size and (more := os.read(descriptor, size + 1 - len(data))):
            data += more
        if data:
            yield data[:CHUNK_BYTES_MAX]
        return
    with open(descriptor, "rb", closefd=False) as stream:
        yield from cut(stream)


class _Packer:
    """Places chunks: found in the index, or put into a new pack that is uploaded when it is full."""

    def __init__(self, job: PackJob, store: Store, index: ChunkIndex) -> None:
        self._root, self._pack_names = job.root, job.pack_names
        self._store, self._index = store, index
        self.placed: dict[bytes, ChunkRef] = {}
        self._sizes: dict[bytes, int] = {}
        self.packs: list[PackInfo] = []
        self.foreign_packs: set[bytes] = set()  # that chunks were found in
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._builder: PackBuilder | None = None
        self._new: list[ChunkRef] = []

    def add(self, plain: bytes) -> bytes:
        chunk_hash = blake3(plain).digest()
        if chunk_hash not in self._sizes:
            self._sizes[chunk_hash] = len(plain)
            self._pending[chunk_hash] = plain
            self._pending_bytes += len(plain)
            if self._pending_bytes >= _PENDING_BYTES:
                self._place()
        return chunk_hash

    def bytes_of(self, hashes: list[bytes]) -> int:
        return sum(self._sizes[chunk_hash] for chunk_hash in hashes)

    def _place(self) -> None:
        known = self._index.lookup(list(self._pending))
        self.placed.update(known)
        own = {pack.ulid for pack in self.packs}
        self.foreign_packs.update(chunk.pack for chunk in known.values() if chunk.pack not in own)
        for chunk_hash, plain in self._pending.items():
            if chunk_hash not in known:
                self._store_chunk(chunk_hash, plain)
        self._pending.clear()
        self._pending_bytes = 0

    def _store_chunk(self, chunk_hash: bytes, plain: bytes) -> None:
        stored, codec = encode_chunk(plain)
        if self._builder is None:
            self._builder = PackBuilder(self._next_ulid())
        ref = self._builder.add(chunk_hash, plain, stored, Codec(codec))
        self.placed[chunk_hash] = ref
        self._new.append(ref)
        if len(self._builder) >= PACK_BYTES_TARGET:
            self._upload()

    def _next_ulid(self) -> bytes:
        number = len(self.packs).to_bytes(4, "big")
        return owned_ulid(self._pack_names, self._pack_names[:6] + blake3(self._pack_names + number).digest(10))

    def _upload(self) -> None:
        assert self._builder is not None
        data, info = self._builder.finish()
        self._store.put(names.pack_key(self._root, ulid_text(info.ulid)), data)
        self.packs.append(info)
        self._index.add_pack(info, self._new)
        self._builder, self._new = None, []

    def finish(self) -> None:
        self._place()
        if self._builder is not None:
            self._upload()
