"""Where a reader's bytes come from on a machine that has a cache of the dataset: the one that mounts fill and use."""

from __future__ import annotations

from collections.abc import Iterator

from synclib.core.entry import ADDRESS_UNIT, Entry
from synclib.core.extent_map import Extent
from synclib.core.streaming import Landing, Stretch
from synclib.disk.blob_cache import BlobCache
from synclib.lazy.blob import Blob
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.view import KEPT_AT_ONCE_BYTES, ChunkSource


class CachedSource:
    """Chunks by way of a blob: what a mount has fetched needs no request, what is fetched here a mount need not fetch.

    ``far``: asked, past the cache, for much at once.
    """

    def __init__(self, blob: Blob, cache: BlobCache, extents: EntryExtents, far: ChunkSource) -> None:
        self._blob, self._cache, self._extents, self._far = blob, cache, extents, far

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        """Put chunks of one file to their places."""
        if not entry.address:
            self._far.fill(entry, landings, stretch)
        elif sum(landing.chunk.plain_bytes for landing in landings) <= KEPT_AT_ONCE_BYTES:
            self._extents.know(entry)
            for run in _runs(entry, landings):
                self._fill_run(entry, run, stretch)
        else:
            lacking = [landing for landing in landings if not self._land(entry, landing, stretch)]
            if lacking:
                self._far.fill(entry, lacking, stretch)

    def _fill_run(self, entry: Entry, run: list[Extent], stretch: Stretch) -> None:
        """What of neighbours is in the stretch, no more."""
        base = entry.address * ADDRESS_UNIT
        first, stop = max(run[0].position, base + stretch.offset), min(run[-1].stop, base + stretch.stop)
        stretch.put(self._blob.read(first, stop - first, run), first - base)

    def _land(self, entry: Entry, landing: Landing, stretch: Stretch) -> bool:
        """Whether the cache has a chunk; then it is in its places."""
        extent = Extent(entry.address * ADDRESS_UNIT + landing.offsets[0], landing.chunk)
        data = self._cache.read(extent.position, landing.chunk.plain_bytes, [extent])
        if data is None:
            return False
        stretch.land(data, landing)
        return True


def _runs(entry: Entry, landings: list[Landing]) -> Iterator[list[Extent]]:
    """Where chunks of a file stand, in stretches of those that follow each other."""
    base = entry.address * ADDRESS_UNIT
    places = sorted((offset, landing.chunk) for landing in landings for offset in landing.offsets)
    run: list[Extent] = []
    for offset, chunk in places:
        if run and run[-1].stop != base + offset:
            yield run
            run = []
        run.append(Extent(base + offset, chunk))
    if run:
        yield run
