"""A chain of runs read as one sorted table of entries: the newest run that knows a path decides.

Reading is by blocks: a lookup costs the tails once, then one block with its hashes in each run that may hold the path.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from synclib.core.entry import HASH_BYTES, Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS, sort_key
from synclib.core.run import BlockInfo, Tail, decode_block, decode_tail
from synclib.errors import BoxlinkError, Corrupt
from synclib.store.base import Buffer, Store

# One request of an iteration: enough that a chain of ten million entries is some hundred requests.
_READ_BYTES = 1 << 20
_BLOCKS_KEPT = 8

T = TypeVar("T")


class RangeSource(Protocol):
    """Where runs are read from: a store, or a cache in front of one."""

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]: ...

    def drop(self, key: str) -> bool:
        """Forget a copy that turned out to be damaged; False when there was none, so that to try again is useless."""


class StoreRuns:
    """Runs straight from a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self._store.get_ranges(key, ranges)

    def drop(self, key: str) -> bool:
        return False


class RunReader:
    """One run, opened when first asked; safe between threads."""

    def __init__(self, source: RangeSource, root: str, ref: RunRef) -> None:
        self.ref = ref
        self.key = ref.key(root)
        self._source = source
        self._tail: Tail | None = None
        self._kept: OrderedDict[int, list[Entry]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tail(self) -> Tail:
        tail = self._tail
        if tail is None:
            tail = self._tail = self._checked(self._read_tail)
        return tail

    def _read_tail(self) -> Tail:
        ref = self.ref
        (data,) = self._source.get_ranges(self.key, [(ref.object_bytes - ref.tail_bytes, ref.object_bytes)])
        tail = decode_tail(data, ref.object_bytes, ref.tail_digest)
        said = (LEVELS[tail.level - 1], tail.seq_first, tail.seq_last, tail.entry_count)
        if said != (ref.level, ref.seq_first, ref.seq_last, ref.entry_count):
            raise Corrupt("a run is not the one that the manifest names")
        return tail

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            try:
                return read()
            except Corrupt:
                if not self._source.drop(self.key):
                    raise
                return read()
        except BoxlinkError as error:
            error.key = error.key or self.key
            raise

    def lookup(self, key: bytes) -> Entry | None:
        """The entry of a path, tombstones included, hashes included."""
        blocks = self.tail.blocks
        index = bisect.bisect_right(blocks, key, key=lambda block: block.first_key) - 1
        if index < 0 or key > self.tail.last_key:
            return None
        entries = self._block(index)
        at = bisect.bisect_left(entries, key, key=lambda entry: entry.key)
        return entries[at] if at < len(entries) and entries[at].key == key else None

    def _block(self, index: int) -> list[Entry]:
        with self._lock:
            if (kept := self._kept.get(index)) is not None:
                self._kept.move_to_end(index)
                return kept
        info = self.tail.blocks[index]

        def read() -> list[Entry]:
            stored, *hashes = self._source.get_ranges(self.key, block_ranges(info, self.tail, with_hashes=True))
            return self._decode(index, stored, hashes[0] if hashes else b"")

        entries = self._checked(read)
        with self._lock:
            self._kept[index] = entries
            while len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        return entries

    def _decode(self, index: int, stored: bytes | memoryview, hashes: bytes | memoryview | None) -> list[Entry]:
        """A block's entries, which must end before the next block begins, or where the run does."""
        tail = self.tail
        entries = decode_block(tail.blocks[index], tail, stored, hashes)
        last = entries[-1].key
        is_last = index + 1 == len(tail.blocks)
        if last != tail.last_key if is_last else last >= tail.blocks[index + 1].first_key:
            raise Corrupt("the blocks of a run overlap")
        return entries

    def entries(self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Entries with start <= key < stop, tombstones included, in order; a few MiB at a time."""
        blocks = self.tail.blocks
        first = max(0, bisect.bisect_right(blocks, start, key=lambda block: block.first_key) - 1)
        last = len(blocks) if stop is None else bisect.bisect_left(blocks, stop, key=lambda block: block.first_key)
        while first < last:
            after, size = first, 0
            while after < last and (after == first or size < _READ_BYTES):
                size += blocks[after].stored_bytes + (blocks[after].hash_count * HASH_BYTES if with_hashes else 0)
                after += 1
            for entries in self._decode_blocks(first, after, with_hashes):
                if start and entries[0].key < start:
                    entries = [entry for entry in entries if entry.key >= start]  # noqa: PLW2901 - the edge block, cut
                if stop is not None and entries and entries[-1].key >= stop:
                    yield from (entry for entry in entries if entry.key < stop)
                    return
                yield from entries
            first = after

    def _decode_blocks(self, first: int, after: int, with_hashes: bool) -> Iterator[list[Entry]]:
        tail, blocks = self.tail, self.tail.blocks[first:after]
        start, hashes_at = blocks[0].offset, tail.hashes_offset + blocks[0].hash_first * HASH_BYTES
        ranges = [(start, blocks[-1].offset + blocks[-1].stored_bytes)]
        hash_count = sum(block.hash_count for block in blocks) if with_hashes else 0
        if hash_count:
            ranges.append((hashes_at, hashes_at + hash_count * HASH_BYTES))
        found = self._checked(lambda: self._source.get_ranges(self.key, ranges))
        stored, hashes = memoryview(found[0]), memoryview(found[1] if hash_count else b"")
        for index, block in enumerate(blocks, first):
            at = (block.hash_first - blocks[0].hash_first) * HASH_BYTES
            piece = stored[block.offset - start : block.offset - start + block.stored_bytes]
            own = hashes[at : at + block.hash_count * HASH_BYTES] if with_hashes else None
            try:
                yield self._decode(index, piece, own)
            except Corrupt:
                # Perhaps only a local copy is damaged: read this block alone, which goes back to the store.
                yield self._block(index)


def block_ranges(info: BlockInfo, tail: Tail, *, with_hashes: bool) -> list[tuple[int, int]]:
    """The ranges of a run object that hold a block and, if it has any, its hashes."""
    ranges = [(info.offset, info.offset + info.stored_bytes)]
    if with_hashes and info.hash_count:
        start = tail.hashes_offset + info.hash_first * HASH_BYTES
        ranges.append((start, start + info.hash_count * HASH_BYTES))
    return ranges


class Chain:
    """Runs, oldest first, as one table. Any list of runs of one dataset will do: a base may skip others' runs."""

    def __init__(self, runs: Iterable[RunReader]) -> None:
        self.runs = list(runs)

    @classmethod
    def of(cls, source: RangeSource, root: str, refs: Iterable[RunRef]) -> Chain:
        """The chain of the runs that a manifest (or a base) names."""
        return cls(RunReader(source, root, ref) for ref in refs)

    def lookup(self, key: bytes) -> Entry | None:
        """The entry of a path, with hashes; None when there is none."""
        for run in reversed(self.runs):
            if (entry := run.lookup(key)) is not None:
                return None if entry.kind == Kind.TOMBSTONE else entry
        return None

    def entries(self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Live entries with start <= key < stop, in order."""
        merged = self.merged(start, stop, with_hashes=with_hashes)
        return (entry for entry, _ in merged if entry.kind != Kind.TOMBSTONE)

    def merged(
        self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True
    ) -> Iterator[tuple[Entry, RunReader]]:
        """The newest record of each path, tombstones included, with the run that holds it."""
        if len(self.runs) == 1:
            run = self.runs[0]
            yield from ((entry, run) for entry in run.entries(start, stop, with_hashes=with_hashes))
            return
        streams = [_stream(run, -age, start, stop, with_hashes) for age, run in enumerate(self.runs)]
        last: bytes | None = None
        for key, _, entry, run in heapq.merge(*streams, key=lambda item: item[:2]):
            if key != last:
                yield entry, run
                last = key

    def below(self, path: bytes, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Live entries below a directory, at any depth, in order."""
        if not path:
            return self.entries(with_hashes=with_hashes)
        return self.entries(*below_bounds(path), with_hashes=with_hashes)

    def listdir(self, path: bytes, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Live entries of one directory, by name."""
        start = sort_key(path, b"")
        return self.entries(start, start[:-1] + b"\1", with_hashes=with_hashes)

    def has_below(self, path: bytes) -> bool:
        return next(self.below(path, with_hashes=False), None) is not None


def _stream(
    run: RunReader, rank: int, start: bytes, stop: bytes | None, with_hashes: bool
) -> Iterator[tuple[bytes, int, Entry, RunReader]]:
    for entry in run.entries(start, stop, with_hashes=with_hashes):
        yield entry.key, rank, entry, run


def below_bounds(path: bytes) -> tuple[bytes, bytes]:
    """The half-open range of keys that lie below a directory (not the root)."""
    key = path.replace(b"/", b"\0")
    return key + b"\0", key + b"\1"
