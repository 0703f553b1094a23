"""Which packs to write anew: those of which little is live, and small ones, which cost a request each."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synclib.core.pack import PACK_BYTES_TARGET

# Below this share of live bytes a pack is worth writing anew.
LIVE_RATIO_MIN = 0.6
# What many small publishes leave: packs of less than an eighth of the target.
SMALL_BYTES = PACK_BYTES_TARGET // 8
SMALL_PACKS_MIN = 8
# How many chunks are moved at a time: each takes some 100 bytes of memory until all are. The next repacking goes on.
CHUNKS_MAX = 1 << 20


class PackUse(msgspec.Struct, frozen=True):
    """How much of a pack the newest seq uses."""

    ulid: bytes
    chunk_bytes: int
    live_bytes: int
    live_chunks: int = 0


def choose_packs(uses: Iterable[PackUse], budget_bytes: int) -> list[PackUse]:
    """Those to write anew, the least live first, of at most ``budget_bytes`` live bytes together, and of no more chunks
    than a machine remembers."""
    found = sorted(uses, key=lambda use: (use.live_bytes / max(1, use.chunk_bytes), use.ulid))
    sparse = [use for use in found if use.live_bytes < LIVE_RATIO_MIN * use.chunk_bytes]
    small = [use for use in found if use.chunk_bytes < SMALL_BYTES and use not in sparse]
    if len(small) < SMALL_PACKS_MIN:
        small = []
    chosen: list[PackUse] = []
    size = count = 0
    for use in [*sparse, *small]:
        # The first one always may be: else it would never.
        if size + use.live_bytes <= budget_bytes and (not chosen or count + use.live_chunks <= CHUNKS_MAX):
            chosen.append(use)
            size += use.live_bytes
            count += use.live_chunks
    return chosen
