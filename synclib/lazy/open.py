"""A dataset at a seq, opened for reading without restoring it: the in-process reader.

An empty machine has the first byte of any file after four round trips, however large the dataset: the head; the tails
of its runs, side by side; the blocks that may hold the path, side by side; the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from synclib.core.manifest import Manifest
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_reader import RangeSource, Request, StoreRuns
from synclib.lazy.steady import SteadyView
from synclib.lazy.view import ChunkSource, View
from synclib.store.base import Buffer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from synclib.disk.pieces import PieceCache


def open_view(
    dataset: Dataset, seq: int | None = None, *, executor: Executor | None = None, cache: PieceCache | None = None
) -> View:
    """A reader of ``dataset`` at ``seq`` (None: the newest).

    ``executor``: threads for what is asked for side by side, for a store that is far. ``cache``: what is kept between
    readers; what comes out of it is verified like what comes from the store.
    """
    return open_manifest(dataset, dataset.manifest_at(seq), executor=executor, cache=cache)


def open_manifest(
    dataset: Dataset, manifest: Manifest, *, executor: Executor | None = None, cache: PieceCache | None = None
) -> View:
    """A reader at a manifest that was just read."""
    source: RangeSource = StoreRuns(dataset.store, executor)
    if cache is not None:
        source = CachedRuns(source, cache)
    chunks = ChunkSource(dataset.store, dataset.root, executor, cache)

    def opened(found: Manifest) -> View:
        return View(found, Chain.of(source, dataset.root, found.runs), chunks)

    return SteadyView(dataset, manifest, opened)


class CachedRuns:
    """A cache of ranges in front of where runs come from."""

    def __init__(self, source: RangeSource, cache: PieceCache) -> None:
        self._source, self._cache = source, cache
        self.is_far = source.is_far
        self._served: dict[str, set[bytes]] = {}  # by key: pieces that came out of the cache

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        return self.get_many([(key, ranges)])[0]

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        kept = [self._kept(key, ranges) for key, ranges in requests]
        lacking = [request for request, found in zip(requests, kept, strict=True) if found is None]
        fetched = iter(self._source.get_many(lacking) if lacking else ())
        answers: list[list[Buffer]] = []
        for (key, ranges), found in zip(requests, kept, strict=True):
            if found is None:
                found = next(fetched)  # noqa: PLW2901 - what the cache did not have
                for (start, stop), data in zip(ranges, found, strict=True):
                    self._cache.put(_name(key, start, stop), data)
            answers.append(found)
        return answers

    def _kept(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer] | None:
        """All of the ranges, or None."""
        found: list[Buffer] = []
        for start, stop in ranges:
            name = _name(key, start, stop)
            data = self._cache.get(name)
            if data is None:
                return None
            self._served.setdefault(key, set()).add(name)
            found.append(data)
        return found

    def drop(self, key: str) -> bool:
        served = self._served.pop(key, set())
        for name in served:
            self._cache.drop(name)
        return bool(served)


def _name(key: str, start: int, stop: int) -> bytes:
    return xxhash.xxh3_128_digest(f"{key}\0{start}\0{stop}".encode())
