"""How large the engine's pieces are in a run: as they are, or so tiny that small trees have several of everything.

Only so do blocks lie clear of each other and are copied by compactions, packs fill up, and fetches take several jobs.
It is also where I10 can be said: whatever the size of the data, no call of a store carries more than a few pieces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

from synclib.core import block, pack, plan, repacking, run, runfile
from synclib.engine import pack_job, reading, repack
from synclib.lazy import merge, run_cache, run_reader
from tests.sim.scheduler import Violation


class Scale(NamedTuple):
    block_bytes: int
    filter_entries: int  # in a run that has a Bloom filter, and whose merges copy no block, at most
    pack_bytes: int
    range_bytes: int
    gap_bytes: int
    piece_bytes: int  # of a run that is brought here or read ahead
    carried_bytes_max: int  # by one call of a store, as bytes in memory

    def check_carried(self, who: str, verb: str, key: str, size: int) -> None:
        if size > self.carried_bytes_max:
            raise Violation(f"I10: {who} has {size} bytes of {key} in memory for one {verb}, most of its data")


AS_IT_IS = Scale(
    block.BLOCK_PLAIN_TARGET,
    run.BLOOM_ENTRIES_MAX,
    pack.PACK_BYTES_TARGET,
    plan.RANGE_BYTES_MAX,
    plan.GAP_BYTES_MAX,
    run_cache._PIECE_BYTES,
    2 * pack.PACK_BYTES_TARGET,
)
# Files have 1,500 bytes at most: a pack that takes one more when it is nearly full, and its table.
TINY = Scale(150, 6, 2000, 1500, 64, 512, 3584)


@contextlib.contextmanager
def scaled(scale: Scale) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (runfile, "BLOCK_PLAIN_TARGET", scale.block_bytes),
            (merge, "BLOCK_PLAIN_TARGET", scale.block_bytes),
            (runfile, "BLOOM_ENTRIES_MAX", scale.filter_entries),
            (merge, "BLOOM_ENTRIES_MAX", scale.filter_entries),
            (pack_job, "PACK_BYTES_TARGET", scale.pack_bytes),
            (reading, "PACK_BYTES_TARGET", scale.pack_bytes),
            (repack, "PACK_BYTES_TARGET", scale.pack_bytes),
            (repacking, "SMALL_BYTES", scale.pack_bytes // 8),
            (plan, "RANGE_BYTES_MAX", scale.range_bytes),
            (plan, "GAP_BYTES_MAX", scale.gap_bytes),
            (run_cache, "_PIECE_BYTES", scale.piece_bytes),
            (run_reader, "_READ_BYTES", scale.piece_bytes),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
