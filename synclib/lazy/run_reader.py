"""One run read block by block: a lookup costs its tail once, then one block with its hashes."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from synclib.core.block import Block, BlockInfo, check_block, decode_block
from synclib.core.bloom import may_hold
from synclib.core.entry import HASH_BYTES, Entry
from synclib.core.manifest import RunRef
from synclib.core.names import LEVELS
from synclib.core.run import Tail, decode_tail
from synclib.errors import BoxlinkError, Corrupt
from synclib.store.base import Buffer, Store

if TYPE_CHECKING:
    from concurrent.futures import Executor

# One request of an iteration: enough that a chain of ten million entries is some hundred requests.
_READ_BYTES = 1 << 20
_BLOCKS_KEPT = 8

Request = tuple[str, Sequence[tuple[int, int]]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block as it is stored; nothing is verified yet. No hashes where none were asked for."""

    index: int
    stored: Buffer
    hashes: Buffer | None


class RangeSource(Protocol):
    """Where runs are read from: a store, or a cache in front of one."""

    # Whether asking costs so much that what may be needed is asked for together, before it is known to be needed.
    is_far: bool

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]: ...

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        """The ranges of several objects, side by side."""

    def drop(self, key: str) -> bool:
        """Forget a copy that turned out to be damaged; False when there was none, so that to try again is useless."""


class StoreRuns:
    """Runs straight from a store. ``executor``: threads for what is asked for side by side; without, one by one."""

    def __init__(self, store: Store, executor: Executor | None = None) -> None:
        self._store = store
        self._executor = executor
        self.is_far = executor is not None

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self._store.get_ranges(key, ranges)

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        if self._executor is None or len(requests) < 2:
            return [self._store.get_ranges(*request) for request in requests]
        return list(self._executor.map(lambda request: self._store.get_ranges(*request), requests))

    def drop(self, key: str) -> bool:
        return False


class RunReader:
    """One run, opened when first asked; safe between threads."""

    def __init__(self, source: RangeSource, root: str, ref: RunRef) -> None:
        self.ref = ref
        self.key = ref.key(root)
        self.source = source
        self._tail: Tail | None = None
        self._packs: list[bytes] = []
        self._first_keys: list[bytes] = []  # of the blocks
        self._kept: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self._tail is not None

    @property
    def tail(self) -> Tail:
        tail = self._tail
        if tail is None:
            self._checked(lambda: self.open(self.source.get_ranges(*self.tail_request())))
            tail = self._tail
            assert tail is not None
        return tail

    def tail_request(self) -> Request:
        ref = self.ref
        return self.key, [(ref.object_bytes - ref.tail_bytes, ref.object_bytes)]

    def open(self, data: list[Buffer]) -> None:
        """Take what :meth:`tail_request` asks for."""
        ref = self.ref
        tail = decode_tail(bytes(data[0]), ref.object_bytes, ref.tail_digest)
        said = (LEVELS[tail.level - 1], tail.seq_first, tail.seq_last, tail.entry_count)
        if said != (ref.level, ref.seq_first, ref.seq_last, ref.entry_count):
            raise Corrupt("a run is not the one that the manifest names", key=self.key)
        self._packs = [row[0] for row in tail.packs]
        self._first_keys = [block.first_key for block in tail.blocks]
        self._tail = tail

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            try:
                return read()
            except Corrupt:
                if not self.source.drop(self.key):
                    raise
                return read()
        except BoxlinkError as error:
            error.key = error.key or self.key
            raise

    def candidate(self, key: bytes) -> int | None:
        """The one block that may hold a key."""
        tail = self.tail
        index = bisect.bisect_right(self._first_keys, key) - 1
        if index < 0 or key > tail.last_key or not may_hold(tail.bloom, key):
            return None
        return index

    def first_key(self, index: int) -> bytes:
        """Of a block."""
        return self._first_keys[index]

    def lookup(self, key: bytes) -> Entry | None:
        """The entry of a path, tombstones included, hashes included."""
        index = self.candidate(key)
        return None if index is None else self.block(index).find(key)

    def block(self, index: int) -> Block:
        """A block with its hashes."""
        with self._lock:
            if (kept := self._kept.get(index)) is not None:
                self._kept.move_to_end(index)
                return kept
        return self._checked(lambda: self.take_block(index, self.source.get_ranges(*self.block_request(index))))

    def has_block(self, index: int) -> bool:
        """Whether a block is kept in memory."""
        with self._lock:
            return index in self._kept

    def block_request(self, index: int) -> Request:
        info = self.tail.blocks[index]
        ranges = [(info.offset, info.offset + info.stored_bytes)]
        if info.hash_count:
            start = self.tail.hashes_offset + info.hash_first * HASH_BYTES
            ranges.append((start, start + info.hash_count * HASH_BYTES))
        return self.key, ranges

    def take_block(self, index: int, data: list[Buffer]) -> Block:
        """Verify and keep what :meth:`block_request` asks for."""
        block = self.decode(RawBlock(index, data[0], data[1] if len(data) > 1 else b""))
        with self._lock:
            self._kept[index] = block
            while len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        return block

    def check(self, raw: RawBlock) -> None:
        """Corrupt unless a block has the digests that the tail names."""
        try:
            check_block(self.tail.blocks[raw.index], raw.stored, raw.hashes)
        except Corrupt as error:
            error.key = self.key
            raise

    def decode(self, raw: RawBlock) -> Block:
        """A block, verified; it must end before the next one begins, or where the run does."""
        tail = self.tail
        block = decode_block(tail.blocks[raw.index], self._packs, raw.stored, raw.hashes)
        last = block.keys[-1]
        is_last = raw.index + 1 == len(tail.blocks)
        if last != tail.last_key if is_last else last >= tail.blocks[raw.index + 1].first_key:
            raise Corrupt("the blocks of a run overlap", key=self.key)
        return block

    def span(self, start: bytes, stop: bytes | None) -> range:
        """The blocks that may hold keys with start <= key < stop."""
        if start > self.tail.last_key:
            return range(0)
        first_keys = self._first_keys
        first = max(0, bisect.bisect_right(first_keys, start) - 1)
        return range(first, len(first_keys) if stop is None else bisect.bisect_left(first_keys, stop))

    def entries(self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Entries with start <= key < stop, tombstones included, in order; a few MiB at a time."""
        for block, first, last in self.pieces(start, stop, with_hashes=with_hashes):
            yield from block.entries(first, last)

    def pieces(
        self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True
    ) -> Iterator[tuple[Block, int, int]]:
        """The same as (block, first, past the last) of blocks' entries; none is empty."""
        for block in self._blocks(self.span(start, stop), with_hashes):
            first = bisect.bisect_left(block.keys, start) if block.keys[0] < start else 0
            last = len(block) if stop is None or block.keys[-1] < stop else bisect.bisect_left(block.keys, stop)
            if first < last:
                yield block, first, last

    def blocks_naming(self, packs: set[bytes]) -> Iterator[Block]:
        """The blocks that have a chunk in any of these packs, without hashes; neighbours are asked for together."""
        numbers = {number for number, row in enumerate(self.tail.packs) if row[0] in packs}
        blocks = self.tail.blocks
        wanted = [index for index, info in enumerate(blocks) if not numbers.isdisjoint(info.packs)]
        first = 0
        while first < len(wanted):
            last = first
            while last + 1 < len(wanted) and wanted[last + 1] == wanted[last] + 1:
                last += 1
            yield from self._blocks(range(wanted[first], wanted[last] + 1), with_hashes=False)
            first = last + 1

    def _blocks(self, span: range, with_hashes: bool) -> Iterator[Block]:
        first = span.start
        while first < span.stop and self.has_block(first):
            yield self.block(first)
            first += 1
        for raw in self.raw_blocks(range(first, span.stop), with_hashes=with_hashes):
            try:
                yield self.decode(raw)
            except Corrupt:
                # Perhaps only a local copy is damaged: read this block alone, which goes back to the store.
                yield self.block(raw.index)

    def raw_blocks(self, span: range | None = None, *, with_hashes: bool = True) -> Iterator[RawBlock]:
        """Blocks as they are stored, all or those of a span, about a MiB with each request."""
        blocks = self.tail.blocks
        first, stop = (0, len(blocks)) if span is None else (span.start, span.stop)
        while first < stop:
            after, size = first, 0
            while after < stop and (after == first or size < _READ_BYTES):
                size += blocks[after].stored_bytes + (blocks[after].hash_count * HASH_BYTES if with_hashes else 0)
                after += 1
            yield from self._read_raw(first, after, with_hashes)
            first = after

    def _read_raw(self, first: int, after: int, with_hashes: bool) -> Iterator[RawBlock]:
        """Neighbouring blocks, with one request."""
        tail, blocks = self.tail, self.tail.blocks[first:after]
        start, hashes_at = blocks[0].offset, tail.hashes_offset + blocks[0].hash_first * HASH_BYTES
        ranges = [(start, blocks[-1].offset + blocks[-1].stored_bytes)]
        hash_count = sum(block.hash_count for block in blocks) if with_hashes else 0
        if hash_count:
            ranges.append((hashes_at, hashes_at + hash_count * HASH_BYTES))
        found = self._checked(lambda: self.source.get_ranges(self.key, ranges))
        stored, hashes = memoryview(found[0]), memoryview(found[1] if hash_count else b"")
        for index, info in enumerate(blocks, first):
            at = (info.hash_first - blocks[0].hash_first) * HASH_BYTES
            piece = stored[info.offset - start : info.offset - start + info.stored_bytes]
            yield RawBlock(index, piece, hashes[at : at + info.hash_count * HASH_BYTES] if with_hashes else None)


def block_id(info: BlockInfo) -> bytes:
    """What names a block's content, wherever it is stored."""
    return info.digest + info.hashes_digest
