"""What to write anew: packs of which little is live, small ones, which cost a request each, and strays.

Strays are chunks of neighbouring files that lie far from each other: what many publishes into one folder leave in as
many packs, though each of those is full. They are gathered, in path order, and the rest of their packs stays.

Nothing goes round: where chunks belong follows from the order of paths alone, and a chunk that several files have
belongs to the first of them. So what was gathered is no stray the next time, nor makes others so.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from blake3 import blake3

from synclib.core.content_set import ContentSet
from synclib.core.entry import ChunkRef, Entry
from synclib.core.pack import PACK_BYTES_TARGET
from synclib.core.plan import GAP_BYTES_MAX, coalesce_chunks

# Below this share of live bytes a pack is worth writing anew.
LIVE_RATIO_MIN = 0.6
# What many small publishes leave: packs of less than an eighth of the target.
SMALL_BYTES = PACK_BYTES_TARGET // 8
SMALL_PACKS_MIN = 8
# How many chunks are moved at a time: each takes some 100 bytes of memory until all are. The next repacking goes on.
CHUNKS_MAX = 1 << 20
# Neighbours in the order of paths: what a reader of a folder asks for together. Some 256 MiB are read for them at most.
WINDOW_BYTES = 8 << 20
WINDOW_CHUNKS = 1024
# A range of less is a stray: asking for it costs more than its bytes do. So many in one window are worth a new pack.
STRAY_BYTES = 1 << 20
STRAYS_MIN = 8


class PackUse(msgspec.Struct, frozen=True):
    """How much of a pack the newest seq uses."""

    ulid: bytes
    chunk_bytes: int
    live_bytes: int
    live_chunks: int = 0

    @property
    def read_bytes(self) -> int:
        """What has to be read for the live ones: what lies between them is read with them, if it is little."""
        return min(self.chunk_bytes, self.live_bytes + GAP_BYTES_MAX * self.live_chunks)


class Window(msgspec.Struct, frozen=True):
    """The strays of one window: how many ranges they are, of how many bytes in all, and of each pack how many bytes and
    chunks."""

    number: int
    range_count: int
    range_bytes: int
    pack_bytes: Mapping[bytes, int]
    pack_chunks: Mapping[bytes, int]

    @property
    def live_bytes(self) -> int:
        return sum(self.pack_bytes.values())

    @property
    def chunk_count(self) -> int:
        return sum(self.pack_chunks.values())

    @property
    def read_bytes(self) -> int:
        """What is read for them at most, each range with a gap to one of another window."""
        return self.range_bytes + GAP_BYTES_MAX * self.range_count

    @property
    def gain(self) -> float:
        """Requests that a reader of the window is spared, for each byte read."""
        return (self.range_count - 1) / self.read_bytes


def windows(entries: Iterable[Entry]) -> Iterator[list[tuple[ChunkRef, bool]]]:
    """The chunks of entries, which come in order, in windows; with each whether it belongs here: a chunk that an
    earlier file has too belongs there. Now and then (core/content_set.py) that is said of one that no other has."""
    seen = ContentSet()
    window: list[tuple[ChunkRef, bool]] = []
    size = 0
    for entry in entries:
        for chunk in entry.chunks:
            place = blake3(chunk.pack + chunk.offset.to_bytes(8, "big")).digest(16)
            is_own = place not in seen
            window.append((chunk, is_own))
            if is_own:
                seen.add(place)
                size += chunk.stored_bytes
        if size >= WINDOW_BYTES or len(window) >= WINDOW_CHUNKS:
            yield window
            window, size = [], 0
    if window:
        yield window


def strays(window: list[tuple[ChunkRef, bool]]) -> tuple[list[ChunkRef], list[int]]:
    """(the strays of a window in its order, how many bytes each of their ranges has); none where they are few."""
    own = [chunk for chunk, is_own in window if is_own]
    if len(own) < STRAYS_MIN:
        return [], []
    ranges = coalesce_chunks(own)
    short = {pack: [span for span in spans if span[1] - span[0] < STRAY_BYTES] for pack, spans in ranges.items()}
    sizes = [stop - start for spans in short.values() for start, stop in spans]
    if len(sizes) < STRAYS_MIN:
        return [], []
    found = [chunk for chunk in own if any(start <= chunk.offset < stop for start, stop in short[chunk.pack])]
    return found, sizes


def strays_of(number: int, window: list[tuple[ChunkRef, bool]]) -> Window | None:
    """What the strays of a window come to; None where it has none."""
    found, ranges = strays(window)
    if not found:
        return None
    sizes: Counter[bytes] = Counter()
    for chunk in found:
        sizes[chunk.pack] += chunk.stored_bytes
    return Window(number, len(ranges), sum(ranges), sizes, Counter(chunk.pack for chunk in found))


def choose_windows(found: Iterable[Window], budget_bytes: int) -> list[Window]:
    """Those to gather, the worst first, of which at most ``budget_bytes`` are read together, and no more chunks than
    a machine remembers. Holds no more of them than it chooses."""
    kept: list[tuple[float, int, Window]] = []
    size = count = 0
    for window in found:
        if window.read_bytes > budget_bytes:
            continue  # it would push out others in vain
        heapq.heappush(kept, (window.gain, window.number, window))
        size += window.read_bytes
        count += window.chunk_count
        while kept and (size > budget_bytes or count > CHUNKS_MAX // 2):
            dropped = heapq.heappop(kept)[2]
            size -= dropped.read_bytes
            count -= dropped.chunk_count
    return [window for _, _, window in sorted(kept, reverse=True)]


def choose_packs(uses: Iterable[PackUse], budget_bytes: int) -> list[PackUse]:
    """Those to write anew, the least live first, of which at most ``budget_bytes`` are read together, and of no more
    chunks than a machine remembers."""
    found = sorted(uses, key=lambda use: (use.live_bytes / max(1, use.chunk_bytes), use.ulid))
    sparse = [use for use in found if use.live_bytes < LIVE_RATIO_MIN * use.chunk_bytes]
    small = [use for use in found if use.chunk_bytes < SMALL_BYTES and use not in sparse]
    if len(small) < SMALL_PACKS_MIN:
        small = []
    chosen: list[PackUse] = []
    size = count = 0
    for use in [*sparse, *small]:
        # The first one always may be: else it would never.
        if size + use.read_bytes <= budget_bytes and (not chosen or count + use.live_chunks <= CHUNKS_MAX // 2):
            chosen.append(use)
            size += use.read_bytes
            count += use.live_chunks
    return chosen
