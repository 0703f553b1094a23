"""What differs between two chains of one dataset; the cost follows the difference.

Compaction copies most blocks as they are, and never changes which of two records of a path is the newer. So a path
whose records, in both chains, all lie in blocks that both chains have, is the same in both: only the keys of the other
blocks are looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from synclib.core.entry import Entry, is_same_content
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import RunReader, block_id


def changes(old: Chain, new: Chain) -> Iterator[tuple[Entry | None, Entry | None]]:
    """(before, after) of each path whose content differs, in order; None where a chain does not have it."""
    shared = _block_ids(old) & _block_ids(new)
    streams = [_keys(run, shared) for chain in (old, new) for run in chain.runs]
    last = b""
    for key in heapq.merge(*streams):
        if key == last:
            continue
        last = key
        before, after = old.lookup(key), new.lookup(key)
        if before is None or after is None:
            if before is not after:
                yield before, after
        elif not is_same_content(before, after):
            yield before, after


def _block_ids(chain: Chain) -> set[bytes]:
    chain.open()
    return {block_id(info) for run in chain.runs for info in run.tail.blocks}


def _keys(run: RunReader, shared: set[bytes]) -> Iterator[bytes]:
    """The keys of a run's blocks that are not shared, in order."""
    for index, info in enumerate(run.tail.blocks):
        if block_id(info) not in shared:
            yield from run.block(index).keys
