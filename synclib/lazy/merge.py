"""Runs merged into one. Whole blocks are copied as they are wherever no other run has a key in their range, so the
cost of a merge follows what overlaps; packs are not touched."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from synclib.core.block import BLOCK_PLAIN_TARGET, Block, BlockInfo
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.pack import PackInfo
from synclib.core.run import BLOOM_ENTRIES_MAX
from synclib.core.runfile import RunBuilder
from synclib.lazy.run_reader import RawBlock, RunReader

# Of a place in a new pack: a pack is some 32 MiB, and there are fewer than 16 million new ones.
_OFFSET_BITS = 40
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1


class Moves:
    """Chunks that a repacking has moved out of ``victims``, and the new packs. A move takes 16 bytes: a repacking may
    move a million chunks."""

    def __init__(self, victims: frozenset[bytes] = frozenset()) -> None:
        self.victims = victims
        self.packs: dict[bytes, PackInfo] = {}
        self._numbers: list[bytes] = []  # of the new packs
        self._moves = {pack: (array("Q"), array("Q")) for pack in victims}  # offsets, in order once sealed; targets

    def add(self, info: PackInfo, places: Iterable[tuple[bytes, int]], chunks: Iterable[ChunkRef]) -> None:
        """A new pack, and where its chunks were and are."""
        number = len(self._numbers) << _OFFSET_BITS
        self._numbers.append(info.ulid)
        self.packs[info.ulid] = info
        for (pack, offset), chunk in zip(places, chunks, strict=True):
            offsets, targets = self._moves[pack]
            offsets.append(offset)
            targets.append(number | chunk.offset)

    def seal(self) -> None:
        """Ends the adding: from now on they can be asked for."""
        for pack, (offsets, targets) in self._moves.items():
            order = sorted(range(len(offsets)), key=offsets.__getitem__)
            self._moves[pack] = (
                array("Q", (offsets[index] for index in order)),
                array("Q", (targets[index] for index in order)),
            )

    def moved(self, entry: Entry) -> Entry:
        """The entry with its chunks where they are now."""
        if self.victims.isdisjoint(chunk.pack for chunk in entry.chunks):
            return entry
        return msgspec.structs.replace(entry, chunks=tuple(map(self._moved, entry.chunks)))

    def _moved(self, chunk: ChunkRef) -> ChunkRef:
        if chunk.pack not in self.victims:
            return chunk
        offsets, targets = self._moves[chunk.pack]
        at = bisect.bisect_left(offsets, chunk.offset)
        if at == len(offsets) or offsets[at] != chunk.offset:
            return chunk
        number, offset = targets[at] >> _OFFSET_BITS, targets[at] & _OFFSET_MASK
        return msgspec.structs.replace(chunk, pack=self._numbers[number], offset=offset)


def merge(
    runs: Sequence[RunReader],
    builder: RunBuilder,
    packs: dict[bytes, PackInfo],
    *,
    is_snap: bool,
    moves: Moves | None = None,
) -> None:
    """Add to ``builder`` what ``runs``, oldest first, say together: of each path the newest record.

    ``is_snap``: nothing lies below, so tombstones have nothing left to hide. ``packs``: filled with what the runs say.
    """
    moves = moves or Moves()
    packs.update(moves.packs)
    for run in runs:
        packs.update((row[0], PackInfo(*row)) for row in run.tail.packs)
    # A small run is written entry by entry, so that it has a filter and full blocks.
    may_copy = is_snap or sum(run.tail.entry_count for run in runs) > BLOOM_ENTRIES_MAX
    cursors = [_Cursor(run, age) for age, run in enumerate(runs)]
    copied: _Copied | None = None
    while cursors := [cursor for cursor in cursors if cursor.key is not None]:
        first = min(cursors, key=lambda cursor: (cursor.key, -cursor.age))
        others = min((cursor.key for cursor in cursors if cursor is not first and cursor.key is not None), default=None)
        if may_copy and first.may_copy(others, moves.victims, keeps_tombstones=not is_snap):
            copied = first.copy_to(builder)
        else:
            is_shared = first.key == others
            if is_shared:
                # The newest is first: what the others say of this path is hidden.
                for cursor in cursors:
                    if cursor is not first and cursor.key == first.key:
                        cursor.skip()
            for entry in first.take(None if is_shared else others, only_one=is_shared):
                if not (is_snap and entry.kind == Kind.TOMBSTONE):
                    placed = moves.moved(entry)
                    builder.use(packs[chunk.pack] for chunk in placed.chunks)
                    builder.add(placed)
                    copied = None
    if copied is not None:
        builder.end_at(copied.last_key())


class _Copied:
    """The latest block that was copied: its last key is known only if it is looked into."""

    def __init__(self, run: RunReader, raw: RawBlock) -> None:
        self._run, self._raw = run, raw

    def last_key(self) -> bytes:
        return self._run.decode(self._raw).keys[-1]


class _Cursor:
    """A place in one run, which is read ahead a few MiB at a time. ``age``: larger is newer."""

    def __init__(self, run: RunReader, age: int) -> None:
        self.age = age
        self._position = 0
        self._run = run
        self._raws: Iterator[RawBlock] = run.raw_blocks()
        self._raw: RawBlock | None = None
        self._block: Block | None = None
        self.key: bytes | None = None
        self._next_block()

    def _next_block(self) -> None:
        self._raw, self._block, self._position = next(self._raws, None), None, 0
        self.key = None if self._raw is None else self._info.first_key

    @property
    def _info(self) -> BlockInfo:
        assert self._raw is not None
        return self._run.tail.blocks[self._raw.index]

    def may_copy(self, others: bytes | None, victims: frozenset[bytes], *, keeps_tombstones: bool) -> bool:
        """Whether the block here can be taken whole: not begun, all of it before ``others``, and worth keeping."""
        if self._raw is None or self._block is not None:
            return False
        info, tail = self._info, self._run.tail
        is_last = self._raw.index + 1 == len(tail.blocks)
        if others is None:
            is_clear = True
        else:
            is_clear = tail.last_key < others if is_last else tail.blocks[self._raw.index + 1].first_key <= others
        is_worth = info.plain_bytes >= BLOCK_PLAIN_TARGET // 2
        if not is_clear or not is_worth or (info.tombstone_count and not keeps_tombstones):
            return False
        return not victims or victims.isdisjoint(tail.packs[number][0] for number in info.packs)

    def copy_to(self, builder: RunBuilder) -> _Copied:
        raw, info = self._raw, self._info
        assert raw is not None
        self._run.check(raw)
        packs = [PackInfo(*self._run.tail.packs[number]) for number in info.packs]
        builder.copy(info, packs, raw.stored, raw.hashes or b"")
        self._next_block()
        return _Copied(self._run, raw)

    def _decoded(self) -> Block:
        """The block here, looked into."""
        if self._block is None:
            assert self._raw is not None
            self._block = self._run.decode(self._raw)
        return self._block

    def take(self, stop: bytes | None, *, only_one: bool) -> Iterator[Entry]:
        """The entries of this block that come before ``stop``, or the next one only; the cursor goes on with them."""
        block = self._decoded()
        while self._block is block and self.key is not None and (stop is None or self.key < stop):
            yield block.entry(self._position)
            self.skip()
            if only_one:
                return

    def skip(self) -> None:
        """Go to the next entry."""
        block = self._decoded()
        self._position += 1
        if self._position < len(block):
            self.key = block.keys[self._position]
        else:
            self._next_block()
