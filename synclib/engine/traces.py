"""A dataset's traces: published by a node that has become ready, read by the next ones (docs/format/trace.md)."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

from synclib.clock import ulid_bytes, ulid_text
from synclib.core.entry import ADDRESS_UNIT, Entry, Kind
from synclib.core.extent_map import Extent
from synclib.core.names import parse_trace_key, sort_key, split_path, trace_key, trace_prefix
from synclib.core.trace import TRACE_BYTES_MAX, TRACES_KEPT, Touch, Trace, decode_trace, encode_trace
from synclib.engine.host import Host
from synclib.errors import Corrupt, Missing, Unsupported
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset


def read_traces(dataset: Dataset) -> list[Trace]:
    """The traces that are kept, the newest last. One that is gone by now or does not read is passed over: a trace is
    advice. Any other error of the store."""
    found: list[Trace] = []
    for _, key in _listed(dataset)[-TRACES_KEPT:]:
        try:
            fetched = dataset.store.get(key, size_max=TRACE_BYTES_MAX)
            assert fetched is not None
            found.append(decode_trace(fetched.data))
        except (Missing, Corrupt, Unsupported):
            continue
    return found


def publish_trace(dataset: Dataset, host: Host, seq: int, touches: Sequence[Touch]) -> str | None:
    """Publish what this node touched when it started at a seq, unless there are traces enough; its key."""
    listed = _listed(dataset)
    if not _is_wanted(listed, seq):
        return None
    now_ns = host.clock.wall_ns()
    key = trace_key(dataset.root, seq, ulid_text(ulid_bytes(host.clock, host.entropy)))
    dataset.store.put(key, encode_trace(Trace(seq, host.node, now_ns, touches)), if_absent=True)
    for _, old in sorted([*listed, (seq, key)])[:-TRACES_KEPT]:
        dataset.store.delete(old)
    return key


def is_trace_wanted(dataset: Dataset, seq: int) -> bool:
    """Whether there are not traces enough of this seq, or of a newer one."""
    return _is_wanted(_listed(dataset), seq)


def _is_wanted(listed: list[tuple[int, str]], seq: int) -> bool:
    return all(other <= seq for other, _ in listed) and sum(other == seq for other, _ in listed) < TRACES_KEPT


def _listed(dataset: Dataset) -> list[tuple[int, str]]:
    """(seq, key) of all traces, in order."""
    found: list[tuple[int, str]] = []
    for info in dataset.store.list(trace_prefix(dataset.root)):
        try:
            found.append((parse_trace_key(dataset.root, info.key)[0], info.key))
        except Corrupt:
            continue  # a stranger's
    return sorted(found)


def resolve(chain: Chain, touched: Iterable[tuple[int, Extent]]) -> list[Touch]:
    """Touches by path from (ms, extent), in the same order; of hard links the first by path.

    Only the blocks are read that name a pack of theirs: what it costs follows what was touched, not the dataset.
    """
    order = list(touched)
    positions = sorted(extent.position for _, extent in order)
    packs = {extent.chunk.pack for _, extent in order}
    chain.open()
    found: dict[int, tuple[bytes, int, int]] = {}
    for age, run in enumerate(chain.runs):
        for block in run.blocks_naming(packs):
            for entry in block.entries():
                for extent in _touched_of(entry, positions):
                    known = found.get(extent.position)
                    if (known is None or entry.path < known[0]) and not chain.is_hidden(entry, age):
                        place = extent.position - entry.address * ADDRESS_UNIT
                        found[extent.position] = (entry.path, place, extent.chunk.plain_bytes)
    return [Touch(*found[extent.position], at_ms) for at_ms, extent in order if extent.position in found]


def _touched_of(entry: Entry, positions: list[int]) -> list[Extent]:
    """The extents of an entry that begin at any of these."""
    start = entry.address * ADDRESS_UNIT
    if entry.kind != Kind.FILE or not start or not _is_any_in(positions, start, start + entry.size):
        return []
    return [extent for extent in extents_of(entry) if _is_any_in(positions, extent.position, extent.position + 1)]


def _is_any_in(positions: list[int], start: int, stop: int) -> bool:
    index = bisect.bisect_left(positions, start)
    return index < len(positions) and positions[index] < stop


def locate(chain: Chain, touches: Iterable[Touch]) -> Iterator[tuple[int, Extent]]:
    """(milliseconds, extent) of what touches stand for at a seq, by path; what is gone is left out."""
    by_path: dict[bytes, list[Touch]] = {}
    for touch in touches:
        by_path.setdefault(touch.path, []).append(touch)
    # In the chain's order: a block is read once.
    for path in sorted(by_path, key=lambda path: sort_key(*split_path(path))):
        entry = chain.lookup(sort_key(*split_path(path)))
        if entry is None or entry.kind != Kind.FILE:
            continue
        extents = extents_of(entry)
        starts = [extent.position for extent in extents]
        for touch in by_path[path]:
            first = entry.address * ADDRESS_UNIT + touch.offset
            index = max(bisect.bisect_right(starts, first) - 1, 0)
            while index < len(extents) and starts[index] < first + max(touch.length, 1):
                if extents[index].stop > first:
                    yield touch.at_ms, extents[index]
                index += 1


def extents_of(entry: Entry) -> list[Extent]:
    """Where the chunks of a file stand in the address space."""
    position, found = entry.address * ADDRESS_UNIT, []
    for chunk in entry.chunks:
        found.append(Extent(position, chunk))
        position += chunk.plain_bytes
    return found
