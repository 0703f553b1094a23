"""What a volume of a seq holds, made ready here: its image and its map as files, and the blocks of its blob from the
store, each chunk verified."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import IO

from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.extent_map import Extent, encode_map
from synclib.core.manifest import Manifest
from synclib.core.plan import coalesce_chunks
from synclib.core.volume_layout import BLOCK_BYTES, Header, SlotRecord, encode_header
from synclib.core.volume_plan import Changes, Plan, groups, is_at_same_place, plan_of, zero_blocks
from synclib.core.zeros import is_hole
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host, Progress
from synclib.engine.mount import opened, prepare
from synclib.errors import Corrupt, Full
from synclib.lazy.blob import MapReader, chunk_in
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.dataset import Dataset
from synclib.lazy.extent_rows import ExtentRows
from synclib.lazy.maps import file_map
from synclib.lazy.metadata import settle
from synclib.lazy.run_cache import RunCache
from synclib.store.base import Store

# Blocks that are built at once, so that neighbours in a pack come with one request; groups and blocks under way.
_GROUP_BLOCKS = 8
_BUILDERS = 4
_PUTS_AT_ONCE = 64
_READ_BYTES = 1 << 20
_TRIES = 2  # of a chunk whose bytes were wrong

Put = Callable[[int, "bytes | bytearray"], None]  # (index of a block of the volume, its bytes)


@dataclass(frozen=True)
class SeqFiles:
    """The metadata of a seq as a slot holds them; both files are open."""

    manifest: Manifest
    root: str
    image: IO[bytes]
    map: IO[bytes]
    extents: MapReader

    def record(self, generation: int) -> SlotRecord:
        manifest = self.manifest
        image, extents = _hashed(self.image), _hashed(self.map)
        return SlotRecord(generation, self.root, manifest.seq, manifest.digest, manifest.address_end, *image, *extents)

    def slot_block(self, plan: Plan, index: int) -> bytes:
        """A block of the slot; ``index``: of the volume."""
        at = index - plan.slot.start
        file = self.image if at < plan.image_blocks else self.map
        at -= 0 if at < plan.image_blocks else plan.image_blocks
        with disk_errors():
            return os.pread(file.fileno(), BLOCK_BYTES, at * BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")


def _hashed(file: IO[bytes]) -> tuple[int, bytes]:
    digest, position = blake3(), 0
    with disk_errors():
        while piece := os.pread(file.fileno(), _READ_BYTES, position):
            digest.update(piece)
            position += len(piece)
    return position, digest.digest()


@contextlib.contextmanager
def seq_files(dataset: Dataset, host: Host, manifest: Manifest) -> Iterator[SeqFiles]:
    """Make the metadata of a seq whole here. The map is that of its files and no others."""
    with contextlib.ExitStack() as stack, disk_errors():
        prepared = prepare(dataset, host, manifest)
        path = prepared.image
        if not path:
            with opened(prepared, dataset.store) as (_, served):
                assert served is not None
                path = settle(prepared.metadata, served)
        image = stack.enter_context(open(path, "rb"))
        extents = stack.enter_context(tempfile.TemporaryFile())
        with _chain(dataset, host, manifest) as chain, ExtentRows() as rows:
            for _ in rows.noting(chain.entries()):
                pass
            extents.writelines(encode_map(rows.sorted()))
            extents.flush()
        yield SeqFiles(manifest, dataset.root, image, extents, file_map(extents))


@contextlib.contextmanager
def _chain(dataset: Dataset, host: Host, manifest: Manifest) -> Iterator[Chain]:
    runs = RunCache(host.dataset_cache(dataset.store.url, dataset.root) / "run", dataset.store)
    with runs.in_use():
        runs.fill(dataset.root, manifest.runs)
        yield Chain.of(runs, dataset.root, manifest.runs)


def changes_since(dataset: Dataset, host: Host, before: Manifest | None, files: SeqFiles) -> Changes:
    """What differs between what a volume of ``before`` (None: an empty one) holds and the seq."""
    found = Changes()
    if before is None:
        for page in files.extents.walk():
            found.note_all(page)
        return found
    with _chain(dataset, host, before) as old, _chain(dataset, host, files.manifest) as new:
        for former, entry in changes(old, new, is_at_same_place):
            found.note(former, entry)
    return found


def plan_for(
    dataset: Dataset, host: Host, files: SeqFiles, header: Header, before: Manifest | None
) -> tuple[Plan, Header]:
    """What a volume with that header, which holds all of ``before``, lacks of the seq; and its header then. Full where
    its slots are too small."""
    record = files.record(header.next_generation())
    if record.used_bytes > header.layout.slot_bytes:
        raise Full("the metadata have outgrown the slots of the volume")
    found = changes_since(dataset, host, before, files)
    zeros = list(zero_blocks(found, files.extents.overlapping))
    return plan_of(header.layout, record, header.next_slot(), found, zeros), header.with_record(record)


def header_block(header: Header) -> bytes:
    return encode_header(header).ljust(BLOCK_BYTES, b"\0")


class BlobBlocks:
    """Builds blocks of the blob."""

    def __init__(self, store: Store, root: str, extents: MapReader) -> None:
        self._store, self._root, self._extents = store, root, extents

    def build(self, group: list[int]) -> bytearray:
        """Neighbouring blocks, from all that the seq has in them. Any BoxlinkError of the store."""
        start, stop = group[0] * BLOCK_BYTES, (group[-1] + 1) * BLOCK_BYTES
        data = bytearray(stop - start)
        extents = [extent for extent in self._extents.overlapping(start, stop) if not is_hole(extent.chunk)]
        by_pack = coalesce_chunks(extent.chunk for extent in extents)
        for pack, ranges in by_pack.items():
            here = [extent for extent in extents if extent.chunk.pack == pack]
            for extent, plain in self._fetched(names.pack_key(self._root, ulid_text(pack)), ranges, here):
                low, high = max(extent.position, start), min(extent.stop, stop)
                data[low - start : high - start] = plain[low - extent.position : high - extent.position]
        return data

    def _fetched(
        self, key: str, ranges: list[tuple[int, int]], extents: list[Extent]
    ) -> Iterator[tuple[Extent, bytes | memoryview]]:
        """Bits that flipped on their way are fetched anew; what lies damaged in the store stays damaged."""
        for tries_left in reversed(range(_TRIES)):
            answers = self._store.get_ranges(key, ranges)
            try:
                yield from [(extent, chunk_in(extent.chunk, ranges, answers)) for extent in extents]
                return
            except Corrupt as error:
                error.key = key
                if not tries_left:
                    raise


def put_all(
    plan: Plan,
    files: SeqFiles,
    blob: BlobBlocks,
    put: Put,
    is_put: Callable[[int], bool],
    progress: Progress,
) -> None:
    """Put all of a plan's blocks but the header; those that ``is_put`` knows are passed over. ``put`` is called by many
    threads at once. What is under way when one fails is waited for; the first error is raised."""
    told = _Told(progress, (len(plan) - 1) * BLOCK_BYTES)
    room = BoundedSemaphore(2 * _PUTS_AT_ONCE)
    zeros = bytes(BLOCK_BYTES)
    with ThreadPoolExecutor(_PUTS_AT_ONCE) as putters, ThreadPoolExecutor(_BUILDERS) as builders:

        def put_one(index: int, data: bytes | bytearray) -> None:
            try:
                put(index, data)
            finally:
                room.release()

        def put_group(group: list[int], build: Callable[[list[int]], list[bytes | bytearray]]) -> int:
            lacking = [index for index in group if not is_put(index)]
            pending: list[Future[None]] = []
            if lacking:
                for index, data in zip(group, build(group), strict=True):
                    if index in lacking:
                        room.acquire()
                        pending.append(putters.submit(put_one, index, data))
            for future in pending:
                future.result()
            return len(group)

        def slot(group: list[int]) -> list[bytes | bytearray]:
            return [files.slot_block(plan, index) for index in group]

        def built(group: list[int]) -> list[bytes | bytearray]:
            data = blob.build([index - plan.blob_first for index in group])
            return [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]

        def nothing(group: list[int]) -> list[bytes | bytearray]:
            return [zeros] * len(group)

        def jobs() -> Iterator[Future[int]]:
            blob_blocks = (plan.blob_first + index for index in plan.blob)
            for blocks, build in ((plan.slot, slot), (plan.zeros, nothing), (blob_blocks, built)):
                for group in groups(blocks, _GROUP_BLOCKS):
                    yield builders.submit(put_group, group, build)

        _finish(jobs(), told)


def _finish(jobs: Iterator[Future[int]], told: _Told) -> None:
    """Keep some jobs under way; after a first error begin no further one."""
    pending: list[Future[int]] = []
    try:
        for job in jobs:
            pending.append(job)
            if len(pending) > 2 * _BUILDERS:
                told.add(pending.pop(0).result())
        while pending:
            told.add(pending.pop(0).result())
    except BaseException:
        for job in pending:
            job.cancel()
        raise


class _Told:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, blocks: int) -> None:
        self._done += blocks * BLOCK_BYTES
        self._progress("blocks", self._done, self._total)
