"""Verify: read a dataset's structure, or every byte, against the digests that the head leads to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.manifest import Manifest
from synclib.core.pack import PackInfo, decode_chunk, parse_header, parse_tail
from synclib.core.parents import with_parents
from synclib.core.run import HEADER_BYTES, check_header
from synclib.core.treehash import TreeHash
from synclib.engine.host import Progress
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_reader import StoreRuns

_RANGE_BYTES = 16 << 20
_TABLES_KEPT = 32


@dataclass
class VerifyResult:
    """What was read, and what was found: (key, message) of each damaged object, a path where one is known."""

    seq: int = 0
    digest: str = ""
    files: int = 0
    plain_bytes: int = 0
    runs: int = 0
    packs: int = 0
    read_bytes: int = 0
    damage: list[tuple[str, str]] = field(default_factory=list)


def verify(dataset: Dataset, manifest: Manifest, *, is_data: bool, progress: Progress) -> VerifyResult:
    """Check that a seq is whole: its runs, its tree's digest, its packs' slot tables; with ``is_data`` each chunk.

    Damage is collected, not raised: one broken pack does not hide another.
    """
    return _Verification(dataset, manifest, is_data, progress).run()


class _Verification:
    def __init__(self, dataset: Dataset, manifest: Manifest, is_data: bool, progress: Progress) -> None:
        self._dataset, self._manifest, self._is_data, self._progress = dataset, manifest, is_data, progress
        self._result = VerifyResult(manifest.seq, manifest.digest, manifest.file_count, manifest.plain_bytes)
        self._chain = Chain.of(StoreRuns(dataset.store), dataset.root, manifest.runs)
        self._places: dict[bytes, dict[int, ChunkRef] | None] = {}
        self._infos: dict[bytes, PackInfo] = {}

    def run(self) -> VerifyResult:
        with self._collecting(""):
            self._check_runs()
        if not self._result.damage:
            for info in self._infos.values():
                with self._collecting(self._pack_key(info.ulid)):
                    self._check_pack(info)
            with self._collecting(""):
                self._check_entries()
        return self._result

    @contextlib.contextmanager
    def _collecting(self, key: str) -> Iterator[None]:
        """What the body finds damaged or missing goes into the result."""
        try:
            yield
        except (Corrupt, Missing) as error:
            self._result.damage.append((error.key or key, error.message))

    def _pack_key(self, ulid: bytes) -> str:
        return names.pack_key(self._dataset.root, ulid_text(ulid))

    def _check_runs(self) -> None:
        for run in self._chain.runs:
            try:
                (header,) = self._dataset.store.get_ranges(run.key, [(0, HEADER_BYTES)])
                check_header(header, run.tail)
                self._infos.update((row[0], PackInfo(*row)) for row in run.tail.packs)
                for _ in run.entries():
                    pass
            except BoxlinkError as error:
                error.key = error.key or run.key
                raise
            self._result.runs += 1
            self._result.read_bytes += run.ref.object_bytes

    def _check_pack(self, info: PackInfo) -> None:
        """A pack's header, length and slot table, and, if asked, each chunk in it."""
        store, key = self._dataset.store, self._pack_key(info.ulid)
        tail = store.get_suffix(key, info.tail_bytes)
        if tail.size != info.object_bytes:
            raise Corrupt(f"it has {tail.size} bytes, a run says {info.object_bytes}", key=key)
        chunks = list(parse_tail(info.ulid, tail.data, tail.size, info.slots_digest))
        if len(chunks) != info.slot_count:
            raise Corrupt(f"it has {len(chunks)} slots, a run says {info.slot_count}", key=key)
        (header,) = store.get_ranges(key, [(0, 32)])
        if parse_header(header) != info.ulid:
            raise Corrupt("it is another pack under this name", key=key)
        if self._is_data:
            for group in _groups(chunks):
                self._check_chunks(key, group)
        self._result.packs += 1
        self._progress("verified", self._result.packs, len(self._infos))

    def _check_chunks(self, key: str, chunks: list[ChunkRef]) -> None:
        start, stop = chunks[0].offset, chunks[-1].offset + chunks[-1].stored_bytes
        data = memoryview(self._dataset.store.get_ranges(key, [(start, stop)])[0])
        self._result.read_bytes += len(data)
        for chunk in chunks:
            at = chunk.offset - start
            decode_chunk(chunk, data[at : at + chunk.stored_bytes])

    def _check_entries(self) -> None:
        """The tree's digest, and that every file's chunks are slots of the packs it names."""
        tree = TreeHash()
        files = size = 0
        for entry in with_parents(self._chain.entries()):
            tree.add(entry)
            files += entry.kind == Kind.FILE
            size += entry.size
            for chunk in entry.chunks:
                self._check_place(entry, chunk)
        manifest = self._manifest
        if (tree.hexdigest(), files, size) != (manifest.digest, manifest.file_count, manifest.plain_bytes):
            raise Corrupt("the tree does not have the digest that the manifest names")

    def _check_place(self, entry: Entry, chunk: ChunkRef) -> None:
        if chunk.pack not in self._places:
            while len(self._places) >= _TABLES_KEPT:
                del self._places[next(iter(self._places))]
            self._places[chunk.pack] = self._read_places(chunk.pack)
        places = self._places[chunk.pack]
        if places is not None and places.get(chunk.offset) != chunk:
            path = os.fsdecode(entry.path)
            raise Corrupt(
                f"{path} names a chunk that its pack does not have", key=self._pack_key(chunk.pack), path=path
            )

    def _read_places(self, ulid: bytes) -> dict[int, ChunkRef] | None:
        """A pack's chunks by offset; None for a pack whose damage is told already."""
        info = self._infos.get(ulid)
        if info is None:
            raise Corrupt("an entry names a pack that its run does not list", key=self._pack_key(ulid))
        try:
            tail = self._dataset.store.get_suffix(self._pack_key(ulid), info.tail_bytes)
            return {chunk.offset: chunk for chunk in parse_tail(ulid, tail.data, tail.size, info.slots_digest)}
        except (Corrupt, Missing):
            return None


def _groups(chunks: list[ChunkRef]) -> Iterator[list[ChunkRef]]:
    """Neighbouring chunks of at most one range's bytes."""
    group: list[ChunkRef] = []
    size = 0
    for chunk in chunks:
        if group and size + chunk.stored_bytes > _RANGE_BYTES:
            yield group
            group, size = [], 0
        group.append(chunk)
        size += chunk.stored_bytes
    if group:
        yield group
