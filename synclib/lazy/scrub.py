"""Reads what a cache holds from the disk anew and hashes it: what is damaged is forgotten, and so fetched again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.eviction import held_in
from synclib.core.extent_map import Extent
from synclib.disk.blob_cache import BlobCache
from synclib.lazy.blob import Extents

_WINDOW_UNITS = 1 << 12


@dataclass
class ScrubCounts:
    """What a scrub has seen."""

    chunks: int = 0
    bytes: int = 0
    damaged: int = 0


def scrub(cache: BlobCache, maps: Sequence[Extents], units: int, go_on: Callable[[ScrubCounts], bool]) -> ScrubCounts:
    """All that some of the maps have and the cache holds below ``units``, each chunk once. ``go_on`` is told the counts
    after each chunk, and may wait, or end it."""
    counts = ScrubCounts()
    for extent in _held(cache, maps, units):
        counts.chunks += 1
        counts.bytes += extent.chunk.plain_bytes
        if not cache.is_right(extent):
            counts.damaged += 1
        if not go_on(counts):
            break
    return counts


def _held(cache: BlobCache, maps: Sequence[Extents], units: int) -> Iterator[Extent]:
    for first in range(0, units, _WINDOW_UNITS):
        starts = {first + index for index in held_in(cache.record.states(first, first + _WINDOW_UNITS))}
        if not starts:
            continue
        # An extent that began before has its turn there.
        stop = min(first + _WINDOW_UNITS, units)
        for extents in maps:
            for extent in extents.overlapping(first * ADDRESS_UNIT, stop * ADDRESS_UNIT):
                if extent.position // ADDRESS_UNIT in starts:
                    starts.remove(extent.position // ADDRESS_UNIT)
                    yield extent
