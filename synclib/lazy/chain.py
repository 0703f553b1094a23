"""A chain of runs read as one sorted table of entries: the newest run that knows a path decides."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

from synclib.core.block import Block
from synclib.core.entry import Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.names import sort_key, split_path
from synclib.lazy.run_reader import RangeSource, RunReader

# What a listing reads ahead of all runs together, where asking is dear.
_BLOCKS_AHEAD = 64


Place = tuple[int, int, int]  # of an entry: index of its run, of its block there, its own in the block


class Chain:
    """Runs, oldest first, as one table. Any list of runs of one dataset will do: a base may skip others' runs."""

    def __init__(self, runs: Iterable[RunReader]) -> None:
        self.runs = list(runs)

    @classmethod
    def of(cls, source: RangeSource, root: str, refs: Iterable[RunRef]) -> Chain:
        """The chain of the runs that a manifest (or a base) names."""
        return cls(RunReader(source, root, ref) for ref in refs)

    def open(self) -> None:
        """Read the tails of all runs, side by side: one round trip."""
        closed = [run for run in self.runs if not run.is_open]
        if closed and closed[0].source.is_far:
            found = closed[0].source.get_many([run.tail_request() for run in closed])
            for run, data in zip(closed, found, strict=True):
                run.open(data)

    def lookup(self, key: bytes) -> Entry | None:
        """The entry of a path, with hashes; None when there is none."""
        self.open()
        self._read_ahead([(run, index) for run in self.runs if (index := run.candidate(key)) is not None])
        for run in reversed(self.runs):
            if (entry := run.lookup(key)) is not None:
                return None if entry.kind == Kind.TOMBSTONE else entry
        return None

    def locate(self, key: bytes) -> tuple[Place, Entry] | None:
        """The entry of a path, and where it stands; None when there is none."""
        self.open()
        candidates = [(age, run.candidate(key)) for age, run in enumerate(self.runs)]
        self._read_ahead([(self.runs[age], index) for age, index in candidates if index is not None])
        for age, index in reversed(candidates):
            if index is None:
                continue
            block = self.runs[age].block(index)
            at = bisect.bisect_left(block.keys, key)
            if at < len(block) and block.keys[at] == key:
                entry = block.entry(at)
                return None if entry.kind == Kind.TOMBSTONE else ((age, index, at), entry)
        return None

    def is_hidden(self, entry: Entry, age: int) -> bool:
        """Whether a newer run than the one that an entry is of, by its index, knows its path."""
        key = sort_key(entry.directory, entry.name)
        return any(run.lookup(key) is not None for run in self.runs[age + 1 :])

    def enter(self, path: bytes) -> tuple[Place, Entry] | None:
        """As :meth:`locate` for one who goes on from there: where a directory must be asked for, what lies below it, if
        that is little, comes with it, and costs no further round trip."""
        self.open()
        key, (start, stop) = sort_key(*split_path(path)), below_bounds(path)
        wanted = [(run, index) for run in self.runs if (index := run.candidate(key)) is not None]
        if not all(run.has_block(index) for run, index in wanted):
            below = [(run, index) for run in self.runs for index in run.span(start, stop)]
            # A block that begins below it shows that it is a directory; of what has no suffix it is likely.
            is_likely = b"." not in split_path(path)[1] or any(start <= run.first_key(index) for run, index in below)
            if is_likely and len(below) <= _BLOCKS_AHEAD:
                self._read_ahead(list(dict.fromkeys([*wanted, *below])))
        return self.locate(key)

    def at(self, place: Place) -> Entry:
        """The entry that stands at a place."""
        age, index, at = place
        return self.runs[age].block(index).entry(at)

    def _read_ahead(self, wanted: list[tuple[RunReader, int]]) -> None:
        """Read blocks side by side, where asking is dear: one round trip for all that may be needed."""
        wanted = [(run, index) for run, index in wanted if not run.has_block(index)]
        if len(wanted) > 1 and wanted[0][0].source.is_far:
            found = wanted[0][0].source.get_many([run.block_request(index) for run, index in wanted])
            for (run, index), data in zip(wanted, found, strict=True):
                run.take_block(index, data)

    def entries(self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True) -> Iterator[Entry]:
        """Live entries with start <= key < stop, in order."""
        merged = self.merged(start, stop, with_hashes=with_hashes)
        return (entry for entry, _ in merged if entry.kind != Kind.TOMBSTONE)

    def merged(
        self, start: bytes = b"", stop: bytes | None = None, *, with_hashes: bool = True
    ) -> Iterator[tuple[Entry, RunReader]]:
        """The newest record of each path, tombstones included, with the run that holds it."""
        self.open()
        runs = [run for run in self.runs if run.span(start, stop)]
        if len(runs) == 1:
            run = runs[0]
            yield from ((entry, run) for entry in run.entries(start, stop, with_hashes=with_hashes))
            return
        spans = [(run, run.span(start, stop)) for run in runs]
        if sum(len(span) for _, span in spans) <= _BLOCKS_AHEAD:
            self._read_ahead([(run, index) for run, span in spans if len(span) == 1 for index in span])
        walkers = [_Walker(run, age, start, stop, with_hashes) for age, run in enumerate(runs)]
        while walkers := [walker for walker in walkers if walker.key is not None]:
            first = min(walkers, key=lambda walker: (walker.key, -walker.age))
            others = min((walker.key for walker in walkers if walker is not first and walker.key), default=None)
            if first.key == others:
                # The newest is first: what the others say of this path is hidden.
                for walker in walkers:
                    if walker is not first and walker.key == first.key:
                        walker.skip()
                yield from first.take_one()
            else:
                yield from first.take_until(others)

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


class _Walker:
    """A place in one run, for a walk over several: what lies before the next key of the others is taken at once."""

    def __init__(self, run: RunReader, age: int, start: bytes, stop: bytes | None, with_hashes: bool) -> None:
        self.age = age
        self.key: bytes | None = None
        self._run = run
        self._pieces = run.pieces(start, stop, with_hashes=with_hashes)
        self._block: Block | None = None
        self._at = self._last = 0
        self._next_piece()

    def _next_piece(self) -> None:
        self._block, self._at, self._last = next(self._pieces, (None, 0, 0))
        self.key = None if self._block is None else self._block.keys[self._at]

    def skip(self) -> None:
        assert self._block is not None
        self._at += 1
        if self._at < self._last:
            self.key = self._block.keys[self._at]
        else:
            self._next_piece()

    def take_one(self) -> Iterator[tuple[Entry, RunReader]]:
        assert self._block is not None
        entry = self._block.entry(self._at)
        self.skip()
        yield entry, self._run

    def take_until(self, key: bytes | None) -> Iterator[tuple[Entry, RunReader]]:
        """What of this block comes before a key."""
        block, first, run = self._block, self._at, self._run
        assert block is not None
        after = self._last if key is None else bisect.bisect_left(block.keys, key, first, self._last)
        for entry in block.entries(first, after):
            yield entry, run
        self._at = after - 1
        self.skip()


def below_bounds(path: bytes) -> tuple[bytes, bytes]:
    """The half-open range of keys that lie below a directory (not the root)."""
    key = path.replace(b"/", b"\0")
    return key + b"\0", key + b"\1"
