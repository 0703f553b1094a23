"""What differs between two chains of one dataset; the cost follows the difference.

Compaction copies most blocks as they are. A path whose records, in both chains, all lie in blocks that both chains
have, and have in the same order, is the same in both: only the keys of the other blocks are looked at.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator

from synclib.core.entry import Entry, is_same_content
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import RunReader, block_id


def changes(
    old: Chain, new: Chain, is_same: Callable[[Entry, Entry], bool] = is_same_content
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """(before, after) of each path that is not the same, in order; None where a chain does not have it. ``is_same``: of
    two entries of a path; by default whether their content is."""
    old.open()
    new.open()
    shared = _shared(old, new)
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
        elif not is_same(before, after):
            yield before, after


def _shared(old: Chain, new: Chain) -> set[bytes]:
    """The blocks that both chains have, each once, such that of two of them the same one is newer in both.

    Content alone does not tell which block it is: the same one may come again when a change is taken back.
    """
    places = _places(new)
    shared: set[bytes] = set()
    reached = 0  # the newest run of ``new`` that has a block of an older run of ``old``
    runs = _places(old)
    by_run: dict[int, list[bytes]] = {}
    for name, age in runs.items():
        by_run.setdefault(age, []).append(name)
    for age in sorted(by_run):
        kept = [name for name in by_run[age] if places.get(name, -1) >= reached]
        shared.update(kept)
        reached = max([reached, *(places[name] for name in kept)])
    return shared


def _places(chain: Chain) -> dict[bytes, int]:
    """The run, by its place in the chain, of each block that is there once."""
    counts = Counter(block_id(info) for run in chain.runs for info in run.tail.blocks)
    return {
        name: age
        for age, run in enumerate(chain.runs)
        for info in run.tail.blocks
        if counts[name := block_id(info)] == 1
    }


def _keys(run: RunReader, shared: set[bytes]) -> Iterator[bytes]:
    """The keys of a run's blocks that are not shared, in order."""
    for index, info in enumerate(run.tail.blocks):
        if block_id(info) not in shared:
            yield from run.block(index).keys
