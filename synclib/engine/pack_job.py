"""The part of publishing that runs in worker processes: read files, cut, hash, compress, pack, upload."""

from __future__ import annotations

import functools
import mmap
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from synclib.clock import SystemClock, stamp_clock_ns, ulid_text
from synclib.core import names
from synclib.core.entry import (
    CHUNK_BYTES_MAX,
    CHUNKS_PER_FILE_MAX,
    TIME_NS_MAX,
    TIME_NS_MIN,
    ChunkRef,
    Codec,
    Entry,
    Kind,
    group_of,
)
from synclib.core.lease import owned_ulid
from synclib.core.memory import allocate
from synclib.core.pack import PACK_BYTES_TARGET, PackBuilder, PackInfo, encode_chunk
from synclib.disk.chunk_index import ChunkIndex
from synclib.disk.holes import HoleReader, is_sparse
from synclib.disk.scan import Found
from synclib.engine.host import Connect, connect_once
from synclib.store.base import Store
from synclib.store.meter import Meter

# Small files are read into this, and wait there for one look into the index: few enough bytes that they are still in
# the processor's cache. Room for one file that is one chunk, and the byte that shows that it grew.
_STAGING_BYTES = CHUNK_BYTES_MAX + 4096
# Linux's clock ticks every 10 ms at the slowest.
_RETRY_WAITS_S = (0.02, 0.1)
_TICK_MAX_S = 0.05
# O_NONBLOCK: a pipe that took the file's place must not make us wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHANGED = "it changed while it was published"

# Structures go between processes as MessagePack, which costs a tenth of pickling them.
_found_decoder = msgspec.msgpack.Decoder(list[Found])
_entry_decoder = msgspec.msgpack.Decoder(list[Entry])


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

    def __getstate__(self) -> dict[str, object]:
        kinds = bytes(isinstance(item, Entry) for item in self.items)
        found = msgspec.msgpack.encode([item for item in self.items if isinstance(item, Found)])
        entries = msgspec.msgpack.encode([item for item in self.items if isinstance(item, Entry)])
        return {**self.__dict__, "items": (kinds, found, entries)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kinds, found, entries = state["items"]
        founds, others = iter(_found_decoder.decode(found)), iter(_entry_decoder.decode(entries))
        items = [next(others if is_entry else founds) for is_entry in kinds]
        self.__dict__.update({**state, "items": items})


@dataclass
class PackResult:
    """Entries in the order of the job's items; ``skipped`` has (path, reason) of those that could not be read.

    ``packs`` are those that the job uploaded, and those of other jobs that its entries refer to: their results may
    come later.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    packs: list[PackInfo] = field(default_factory=list)
    moved: list[bytes] = field(default_factory=list)  # paths that were read as they were after the scan
    read_bytes: int = 0
    meter: Meter = field(default_factory=Meter)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "entries": msgspec.msgpack.encode(self.entries)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "entries": _entry_decoder.decode(state["entries"])})


class Buffers:
    """Memory that jobs use one after the other: to touch new memory costs as much as to read into it."""

    def __init__(self) -> None:
        self.staging = memoryview(allocate(_STAGING_BYTES))
        self.packs: list[mmap.mmap] = []

    @functools.cached_property
    def window(self) -> memoryview:
        """What large files are cut in."""
        from synclib.core.chunker import WINDOW_BYTES

        return memoryview(allocate(WINDOW_BYTES))


@functools.lru_cache(maxsize=1)
def buffers_once() -> Buffers:
    """Those of this process: however many jobs come."""
    return Buffers()


def run_pack_job(job: PackJob) -> PackResult:
    """In a worker process: with this process's own connection to the store."""
    store, meter = connect_once(job.connect)
    result = pack_files(job, store, buffers_once())
    result.meter.add(meter.take())
    return result


def pack_files(job: PackJob, store: Store, buffers: Buffers) -> PackResult:
    if job.index_path is None:
        return PackResult([item for item in job.items if isinstance(item, Entry)])
    index = ChunkIndex(job.index_path, job.session)
    # One pack is uploaded while the next one is filled.
    with ThreadPoolExecutor(1) as uploader:
        try:
            packer = _Packer(job, store, index, uploader, buffers)
            result = PackResult()
            read: list[tuple[Found, list[bytes]] | Entry] = []
            directory, place = None, b""
            for item in job.items:
                if isinstance(item, Entry):
                    read.append(item)
                    continue
                if item.directory != directory:
                    directory, place = item.directory, _place(job, item.directory)
                found, hashes, problem = _read_patiently(place + item.name, item, packer)
                if found is not item:
                    result.moved.append(item.path)
                if problem:
                    result.skipped.append((item.path, problem))
                else:
                    read.append((found, hashes))
                    result.read_bytes += found.size
            packer.finish()
            result.packs = packer.packs + index.packs(packer.foreign_packs)
        finally:
            index.close()
    result.entries = [item if isinstance(item, Entry) else _entry(*item, packer.placed) for item in read]
    return result


def _entry(found: Found, hashes: list[bytes], placed: dict[bytes, ChunkRef]) -> Entry:
    chunks = tuple(placed[chunk_hash] for chunk_hash in hashes)
    return Entry(
        found.directory, found.name, Kind.FILE, found.mode, found.mtime_ns, found.size, chunks, extra=found.extra
    )


def _place(job: PackJob, directory: bytes) -> bytes:
    """Where a directory of the dataset is, with a slash at its end."""
    relative = directory[len(job.prefix) + 1 :] if job.prefix else directory
    return os.path.join(job.top, relative, b"")


def _read_patiently(path: bytes, found: Found, packer: _Packer) -> tuple[Found, list[bytes], str]:
    """A file as it is when it holds still: one that changes is looked at and read again, some times, after a while.

    Not one of a hard-link group: its further links were compared with what the scan saw.
    """
    clock = SystemClock()
    for wait_s in (*_RETRY_WAITS_S, None):
        hashes, problem = _read_file(path, found, packer)
        if problem != _CHANGED or wait_s is None or group_of(found.extra):
            break
        clock.sleep(wait_s)
        try:
            status = os.lstat(path)
        except OSError:
            break
        if not stat.S_ISREG(status.st_mode) or not TIME_NS_MIN <= status.st_mtime_ns <= TIME_NS_MAX:
            break
        found = msgspec.structs.replace(
            found, mode=stat.S_IMODE(status.st_mode), mtime_ns=status.st_mtime_ns, size=status.st_size
        )
    return found, hashes, problem


def _read_file(path: bytes, found: Found, packer: _Packer) -> tuple[list[bytes], str]:
    """(hashes of the chunks, problem): a file that changes while it is read is a problem, never a mixture."""
    size = found.size
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        return [], error.strerror or str(error)
    try:
        before = _settled(descriptor)
        if not stat.S_ISREG(before.st_mode):
            return [], "it is no longer a file"
        changed_ns = before.st_ctime_ns
        is_moving = changed_ns >= stamp_clock_ns()
        if is_moving or before.st_mtime_ns != found.mtime_ns or before.st_size != size:
            return [], _CHANGED
        if size <= CHUNK_BYTES_MAX:
            hashes, read_bytes = _read_small(descriptor, size, packer)
        else:
            hashes, read_bytes = _read_large(descriptor, size, before, packer)
        after = os.fstat(descriptor)
    except OSError as error:
        return [], error.strerror or str(error)
    finally:
        os.close(descriptor)
    if (
        after.st_ctime_ns != changed_ns
        or after.st_mtime_ns != found.mtime_ns
        or after.st_size != size
        or read_bytes != size
    ):
        return [], _CHANGED
    if len(hashes) > CHUNKS_PER_FILE_MAX:
        return [], "it is too large for one entry"
    return hashes, ""


def _settled(descriptor: int) -> os.stat_result:
    """A file's status once the clock that stamps changes has moved on since its last one: a change that comes while it
    is read then shows in its times. Waits a tick of that clock at most; a file that changes all the time stays young.
    """
    status = os.fstat(descriptor)
    if status.st_ctime_ns < stamp_clock_ns():
        return status
    clock = SystemClock()
    deadline = clock.monotonic() + _TICK_MAX_S
    while True:
        status = os.fstat(descriptor)
        if status.st_ctime_ns < stamp_clock_ns() or clock.monotonic() > deadline:
            return status
        clock.sleep(0.001)


def _read_small(descriptor: int, size: int, packer: _Packer) -> tuple[list[bytes], int]:
    """(hashes of the chunks, how many bytes were read) of a file that is one chunk; one byte more if it grew."""
    view = packer.room(size + 1)
    filled = os.readv(descriptor, [view])
    while filled < size and (more := os.readv(descriptor, [view[filled:]])):
        filled += more
    return ([packer.add_staged(view[:filled])] if filled == size and size else []), filled


def _read_large(descriptor: int, size: int, status: os.stat_result, packer: _Packer) -> tuple[list[bytes], int]:
    from synclib.core.chunker import cut

    hashes: list[bytes] = []
    read_bytes = 0
    for batch in cut(HoleReader(descriptor, size, has_holes=is_sparse(status)), packer.buffers.window):
        for chunk, count in batch:
            hashes += [packer.add(chunk)] * count
            read_bytes += len(chunk) * count
        packer.place()
    return hashes, read_bytes


class _Packer:
    """Places chunks: found in the index, or put into a new pack that is uploaded when it is full."""

    def __init__(
        self, job: PackJob, store: Store, index: ChunkIndex, uploader: ThreadPoolExecutor, buffers: Buffers
    ) -> None:
        self.buffers = buffers
        self._root, self._pack_names = job.root, job.pack_names
        self._store, self._index, self._uploader = store, index, uploader
        self.placed: dict[bytes, ChunkRef] = {}
        self._seen: set[bytes] = set()
        self.packs: list[PackInfo] = []
        self.foreign_packs: set[bytes] = set()  # that chunks were found in
        self._pending: dict[bytes, memoryview] = {}
        self._staged = 0
        self._builder: PackBuilder | None = None
        self._new: list[ChunkRef] = []
        self._upload: tuple[Future[str], PackBuilder, PackInfo, list[ChunkRef]] | None = None
        self._pack_count = 0

    def room(self, size: int) -> memoryview:
        """Memory for a file of at most a chunk; what of it goes to :meth:`add` must come before the next call."""
        if self._staged + size > _STAGING_BYTES:
            self.place()
        return self.buffers.staging[self._staged : self._staged + size]

    def add_staged(self, plain: memoryview) -> bytes:
        """The hash of a chunk in the memory that was asked for last; that stays taken until it is placed."""
        chunk_hash = blake3(plain).digest()
        if chunk_hash not in self._seen:
            self._seen.add(chunk_hash)
            self._pending[chunk_hash] = plain
            self._staged += len(plain)
        return chunk_hash

    def add(self, plain: memoryview) -> bytes:
        """The hash of a chunk, whose memory must stay as it is until :meth:`place`."""
        chunk_hash = blake3(plain).digest()
        if chunk_hash not in self._seen:
            self._seen.add(chunk_hash)
            self._pending[chunk_hash] = plain
        return chunk_hash

    def place(self) -> None:
        """Find or store what was added; its memory is free then."""
        if not self._pending:
            return
        known = self._index.lookup(list(self._pending))
        if known:
            self.placed.update(known)
            own = {pack.ulid for pack in self.packs}
            self.foreign_packs.update(chunk.pack for chunk in known.values() if chunk.pack not in own)
        for chunk_hash, plain in self._pending.items():
            if chunk_hash not in known:
                self._store_chunk(chunk_hash, plain)
        self._pending.clear()
        self._staged = 0

    def _store_chunk(self, chunk_hash: bytes, plain: memoryview) -> None:
        stored, codec = encode_chunk(plain)
        if self._builder is None:
            spare = self.buffers.packs.pop() if self.buffers.packs else None
            self._builder = PackBuilder(self._next_ulid(), spare)
        ref = self._builder.add(chunk_hash, plain, stored, Codec(codec))
        self.placed[chunk_hash] = ref
        self._new.append(ref)
        if len(self._builder) >= PACK_BYTES_TARGET:
            self._begin_upload(self._builder)

    def _next_ulid(self) -> bytes:
        number = self._pack_count.to_bytes(4, "big")
        self._pack_count += 1
        return owned_ulid(self._pack_names, self._pack_names[:6] + blake3(self._pack_names + number).digest(10))

    def _begin_upload(self, builder: PackBuilder) -> None:
        self._end_upload()
        data, info = builder.finish()
        key = names.pack_key(self._root, ulid_text(info.ulid))
        self._upload = (self._uploader.submit(self._store.put, key, data), builder, info, self._new)
        self._builder, self._new = None, []

    def _end_upload(self) -> None:
        if self._upload is None:
            return
        future, builder, info, chunks = self._upload
        self._upload = None
        future.result()
        self.packs.append(info)
        self._index.add_pack(info, chunks)
        self.buffers.packs.append(builder.buffer)

    def finish(self) -> None:
        """All is placed and uploaded."""
        self.place()
        if self._builder is not None:
            self._begin_upload(self._builder)
        self._end_upload()
