"""A reader of a dataset at one seq that fetches what is asked for, and verifies it (the reader protocol)."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.manifest import Manifest
from synclib.core.pack import decode_chunk
from synclib.core.plan import Piece, coalesce
from synclib.core.streaming import Landing, StreamRange, Stretch, cut_ranges, landings_of
from synclib.errors import BoxlinkError, Corrupt, Invalid, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.near import Near, near
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.side_by_side import run_side_by_side
from synclib.reader import FirstTouch, WritableBuffer
from synclib.store.base import Buffer, Store

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from synclib.disk.pieces import PieceCache

_CACHE_BYTES = 64 << 20
# What is asked for at once is kept up to this; more goes past the caches, for one model would drive out all they hold.
KEPT_AT_ONCE_BYTES = 8 << 20
RANGES_AT_ONCE = 32


class Source(Protocol):
    """Where a view's bytes come from, each verified. Safe between threads."""

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        """Put chunks of one file to where they stand in a stretch of it."""


class ChunkSource:
    """Verified chunks from packs, the latest ones kept in memory; safe between threads.

    ``executor``: threads that ask several packs side by side. ``cache``: chunks kept on disk.
    """

    def __init__(
        self, store: Store, root: str, executor: Executor | None = None, cache: PieceCache | None = None
    ) -> None:
        self._store, self._root, self._executor, self._cache = store, root, executor, cache
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def _read(self, entry: Entry, chunks: tuple[ChunkRef, ...]) -> list[bytes]:
        """The plain bytes of chunks of one file; those not kept are fetched together."""
        found: dict[bytes, bytes] = {}
        with self._lock:
            for chunk in chunks:
                if chunk.hash in self._kept:
                    self._kept.move_to_end(chunk.hash)
                    found[chunk.hash] = self._kept[chunk.hash]
        if self._cache is not None:
            self._take_cached(self._cache, [chunk for chunk in chunks if chunk.hash not in found], found)
        lacking = tuple(chunk for chunk in chunks if chunk.hash not in found)
        if lacking:
            found.update(self._fetch(entry, lacking))
        return [found[chunk.hash] for chunk in chunks]

    def _fetch(self, entry: Entry, chunks: tuple[ChunkRef, ...]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        requests = {
            pack: (names.pack_key(self._root, ulid_text(pack)), ranges)
            for pack, ranges in coalesce([Piece(entry, chunks, 0, is_whole=False)]).items()
        }
        answers = StoreRuns(self._store, self._executor).get_many(list(requests.values()))
        for (pack, (key, ranges)), data in zip(requests.items(), answers, strict=True):
            for chunk in chunks:
                if chunk.pack == pack and chunk.hash not in found:
                    try:
                        found[chunk.hash] = _slice(chunk, ranges, data)
                    except Corrupt as error:
                        error.key, error.path = key, os.fsdecode(entry.path)
                        raise
        self._keep(found)
        if self._cache is not None:
            for chunk_hash, plain in found.items():
                self._cache.put(chunk_hash, plain)
        return found

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        """Put chunks of one file to their places; what is much is fetched in many ranges at once, and not kept."""
        if sum(landing.chunk.plain_bytes for landing in landings) <= KEPT_AT_ONCE_BYTES:
            plain = self._read(entry, tuple(landing.chunk for landing in landings))
            for landing, data in zip(landings, plain, strict=True):
                stretch.land(data, landing)
            return
        jobs = (functools.partial(self._land, entry, wanted, stretch) for wanted in cut_ranges(landings))
        run_side_by_side(jobs, self._executor, RANGES_AT_ONCE)

    def _land(self, entry: Entry, wanted: StreamRange, stretch: Stretch) -> None:
        key = names.pack_key(self._root, ulid_text(wanted.pack))
        try:
            stored = memoryview(self._store.get_ranges(key, [(wanted.start, wanted.stop)])[0])
            for landing in wanted.landings:
                at = landing.chunk.offset - wanted.start
                stretch.land(decode_chunk(landing.chunk, stored[at : at + landing.chunk.stored_bytes]), landing)
        except BoxlinkError as error:
            error.key, error.path = error.key or key, error.path or os.fsdecode(entry.path)
            raise

    def _take_cached(self, cache: PieceCache, chunks: list[ChunkRef], found: dict[bytes, bytes]) -> None:
        """What the cache on disk has, verified."""
        for chunk in chunks:
            plain = cache.get(chunk.hash)
            if plain is None:
                continue
            if blake3(plain).digest() == chunk.hash:
                found[chunk.hash] = plain
            else:
                cache.drop(chunk.hash)

    def _keep(self, found: dict[bytes, bytes]) -> None:
        with self._lock:
            for chunk_hash, plain in found.items():
                if chunk_hash not in self._kept:
                    self._kept[chunk_hash] = plain
                    self._kept_bytes += len(plain)
            while self._kept_bytes > _CACHE_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def _slice(chunk: ChunkRef, ranges: list[tuple[int, int]], data: list[Buffer]) -> bytes:
    for (start, stop), piece in zip(ranges, data, strict=True):
        if start <= chunk.offset and chunk.offset + chunk.stored_bytes <= stop:
            at = chunk.offset - start
            return bytes(decode_chunk(chunk, memoryview(piece)[at : at + chunk.stored_bytes]))
    raise AssertionError("a plan covers its chunks")


class View:
    """A dataset at one seq, read from its chain and its packs."""

    def __init__(self, manifest: Manifest, chain: Chain, source: Source) -> None:
        self.seq = manifest.seq
        self.digest = manifest.digest
        self.file_count, self.plain_bytes = manifest.file_count, manifest.plain_bytes
        self.on_first_touch: FirstTouch | None = None
        self._chain = chain
        self._source = source

    def stat(self, path: bytes) -> Entry:
        entry = self._chain.lookup(names.sort_key(*names.split_path(path))) if path else None
        if entry is None:
            raise Missing(f"there is no {os.fsdecode(path)} at seq {self.seq}", path=os.fsdecode(path))
        return entry

    def near(self, path: bytes) -> Near | None:
        """What is there in place of a path that is not, for a hint."""
        return near(self._chain, path)

    def _check_directory(self, path: bytes) -> None:
        if path and self.stat(path).kind != Kind.DIRECTORY:
            raise Invalid(f"{os.fsdecode(path)} is no directory", path=os.fsdecode(path))

    def listdir(self, path: bytes) -> Iterator[Entry]:
        self._check_directory(path)
        return self._chain.listdir(path)

    def walk(self, path: bytes = b"") -> Iterator[Entry]:
        self._check_directory(path)
        return self._chain.below(path)

    def readlink(self, path: bytes) -> bytes:
        entry = self.stat(path)
        if entry.kind != Kind.SYMLINK:
            raise Invalid(f"{os.fsdecode(path)} is no symlink", path=os.fsdecode(path))
        return entry.target

    def open(self, path: bytes) -> ViewFile:
        entry = self.stat(path)
        if entry.kind != Kind.FILE:
            raise Invalid(f"{os.fsdecode(path)} is no file", path=os.fsdecode(path))
        return ViewFile(entry, self)

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        """Put chunks of a file to their places."""
        self._source.fill(entry, landings, stretch)

    def close(self) -> None:
        """Nothing is held that does not end with the view."""


class ViewFile:
    """A file of a view. ``on_first_touch`` hears of a chunk once per open file."""

    def __init__(self, entry: Entry, view: View) -> None:
        self.entry = entry
        self._view = view
        self._touched: set[int] = set()
        self._stops = list(itertools.accumulate(chunk.plain_bytes for chunk in entry.chunks))

    def pread(self, offset: int, length: int) -> bytes:
        buffer = bytearray(max(min(length, self.entry.size - offset), 0))
        self.readinto(buffer, offset)
        return bytes(buffer)

    def readinto(self, buffer: WritableBuffer, offset: int) -> int:
        target = memoryview(buffer).cast("B")
        stop = min(offset + len(target), self.entry.size)
        if offset < 0 or offset >= stop:
            return 0
        first, last, start = self._covering(offset, stop)
        self._touch(first, last, offset, stop)
        landings = landings_of(self.entry.chunks[first:last], start)
        self._view.fill(self.entry, landings, Stretch(target[: stop - offset], offset))
        return stop - offset

    def _covering(self, offset: int, stop: int) -> tuple[int, int, int]:
        """(first, past the last, file offset of the first) of the chunks that hold offset..stop."""
        first, last = bisect.bisect_right(self._stops, offset), bisect.bisect_left(self._stops, stop)
        return first, last + 1, self._stops[first - 1] if first else 0

    def _touch(self, first: int, last: int, offset: int, stop: int) -> None:
        if self._view.on_first_touch is not None and not self._touched.issuperset(range(first, last)):
            self._touched.update(range(first, last))
            self._view.on_first_touch(self.entry.path, offset, stop - offset)

    def close(self) -> None:
        """Nothing is held."""
