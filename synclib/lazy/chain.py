"""A chain of runs read as one sorted table of entries: the newest run that knows a path decides."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from synclib.core.entry import Entry, Kind
from synclib.core.manifest import RunRef
from synclib.core.names import sort_key
from synclib.lazy.run_reader import RangeSource, RunReader

# What a listing reads ahead of all runs together, where asking is dear.
_BLOCKS_AHEAD = 64


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
        streams = [_stream(run, -age, start, stop, with_hashes) for age, run in enumerate(runs)]
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
