"""Where a reader's bytes come from on a machine that has a cache of the dataset: the one that mounts fill and use."""

from __future__ import annotations

import itertools

from synclib.core.entry import ADDRESS_UNIT, ChunkRef, Entry
from synclib.core.extent_map import Extent
from synclib.core.streaming import Landing, Stretch
from synclib.disk.blob_cache import BlobCache
from synclib.lazy.blob import Blob
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.view import ChunkSource

# What is asked for at once is kept up to this; more is taken from the cache, but does not drive out what it holds.
_KEPT_AT_ONCE_BYTES = 8 << 20


class CachedSource:
    """Chunks by way of a blob: what a mount has fetched needs no request, what is fetched here a mount need not fetch.

    ``far``: asked, past the cache, for much at once.
    """

    def __init__(self, blob: Blob, cache: BlobCache, extents: EntryExtents, far: ChunkSource) -> None:
        self._blob, self._cache, self._extents, self._far = blob, cache, extents, far

    def read(self, entry: Entry, chunks: tuple[ChunkRef, ...]) -> list[bytes]:
        """The plain bytes of chunks of one file: neighbours are fetched together."""
        if not entry.address:
            return self._far.read(entry, chunks)
        self._extents.know(entry)
        found: list[bytes] = []
        for run in _neighbours(_extents_of(entry, chunks)):
            data = self._blob.read(run[0].position, run[-1].stop - run[0].position, run)
            at = run[0].position
            found += [data[extent.position - at : extent.stop - at] for extent in run]
        return found

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        """Put chunks of one file to their places."""
        if sum(landing.chunk.plain_bytes for landing in landings) <= _KEPT_AT_ONCE_BYTES:
            plain = self.read(entry, tuple(landing.chunk for landing in landings))
            for landing, data in zip(landings, plain, strict=True):
                stretch.land(data, landing)
            return
        lacking = [landing for landing in landings if not self._land(entry, landing, stretch)]
        if lacking:
            self._far.fill(entry, lacking, stretch)

    def _land(self, entry: Entry, landing: Landing, stretch: Stretch) -> bool:
        """Whether the cache has a chunk; then it is in its places."""
        if not entry.address:
            return False
        extent = Extent(entry.address * ADDRESS_UNIT + landing.offsets[0], landing.chunk)
        data = self._cache.read(extent.position, landing.chunk.plain_bytes, [extent])
        if data is None:
            return False
        stretch.land(data, landing)
        return True


def _extents_of(entry: Entry, chunks: tuple[ChunkRef, ...]) -> list[Extent]:
    """Where some chunks of a file stand, in their order: of those that it has several times the first place."""
    starts = [0, *itertools.accumulate(chunk.plain_bytes for chunk in entry.chunks)]
    places: dict[bytes, int] = {}
    for chunk, start in zip(entry.chunks, starts, strict=False):
        places.setdefault(chunk.hash, entry.address * ADDRESS_UNIT + start)
    return [Extent(places[chunk.hash], chunk) for chunk in chunks]


def _neighbours(extents: list[Extent]) -> list[list[Extent]]:
    """Stretches of extents that follow each other."""
    runs: list[list[Extent]] = []
    for extent in extents:
        if runs and runs[-1][-1].stop == extent.position:
            runs[-1].append(extent)
        else:
            runs.append([extent])
    return runs
