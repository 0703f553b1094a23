"""From a stretch of one large file to the ranges of packs that are asked for side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from synclib.core.entry import ChunkRef
from synclib.core.plan import GAP_BYTES_MAX

# Enough that a request's latency is small beside its transfer, few enough that a file of some hundred MiB is in as many
# flights as a store takes. What the ranges under way hold in memory is this times their number.
RANGE_BYTES_MAX = 4 << 20


class Landing(msgspec.Struct, frozen=True, gc=False):
    """A chunk, and the offsets in the file at which its plain bytes stand: several where a file repeats itself."""

    chunk: ChunkRef
    offsets: tuple[int, ...]


class StreamRange(msgspec.Struct, frozen=True):
    """One request: bytes start..stop of a pack, and the chunks that are in them."""

    pack: bytes
    start: int
    stop: int
    landings: list[Landing]


class Stretch:
    """A buffer for a file's bytes from ``offset`` on. Threads may fill parts of it that do not overlap."""

    def __init__(self, target: memoryview, offset: int) -> None:
        self._target = target
        self.offset = offset
        self.stop = offset + len(target)

    def land(self, plain: bytes | memoryview, landing: Landing) -> None:
        """Copy a chunk's bytes to wherever they stand; what lies before or after the stretch is left out."""
        for begin in landing.offsets:
            self.put(plain, begin)

    def put(self, data: bytes | memoryview, begin: int) -> None:
        """Copy the file's bytes from ``begin`` on; what lies before or after the stretch is left out."""
        first, last = max(begin, self.offset), min(begin + len(data), self.stop)
        if first < last:
            self._target[first - self.offset : last - self.offset] = memoryview(data)[first - begin : last - begin]


def landings_of(chunks: Iterable[ChunkRef], offset: int) -> list[Landing]:
    """Neighbouring chunks of a file, the first of them at ``offset`` in it; each content once, in the file's order."""
    found: dict[bytes, tuple[ChunkRef, list[int]]] = {}
    for chunk in chunks:
        found.setdefault(chunk.hash, (chunk, []))[1].append(offset)
        offset += chunk.plain_bytes
    return [Landing(chunk, tuple(offsets)) for chunk, offsets in found.values()]


def cut_ranges(landings: Iterable[Landing]) -> Iterator[StreamRange]:
    """Ranges of at most RANGE_BYTES_MAX that hold all chunks, joined over small gaps; packs in the order they come."""
    by_pack: dict[bytes, list[Landing]] = {}
    for landing in landings:
        by_pack.setdefault(landing.chunk.pack, []).append(landing)
    for pack, group in by_pack.items():
        group.sort(key=lambda landing: landing.chunk.offset)
        held: list[Landing] = []
        start = stop = 0
        for landing in group:
            first, last = landing.chunk.offset, landing.chunk.offset + landing.chunk.stored_bytes
            if held and (first - stop > GAP_BYTES_MAX or max(stop, last) - start > RANGE_BYTES_MAX):
                yield StreamRange(pack, start, stop, held)
                held = []
            start, stop = (start, max(stop, last)) if held else (first, last)
            held.append(landing)
        yield StreamRange(pack, start, stop, held)
