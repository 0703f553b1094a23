"""What a publisher does for the chain after it has published, within a budget: compaction, now and then collection."""

from __future__ import annotations

import contextlib

from synclib.engine.attach import attach, snap_without
from synclib.engine.compact import compact
from synclib.engine.host import Host, Progress
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset, HeadState

# What a compaction that nobody asked for may read: some seconds beside the publish that it follows.
COMPACT_BUDGET_BYTES = 64 << 20
# Every so many seqs what killed publishers left is collected, as long as that takes few requests.
COLLECT_EVERY = 64
# Image and map of a snap cost some 8 us an entry, and spare every node as much: a small dataset's are made when
# somebody asks for a compaction.
ATTACH_ENTRIES_MIN = 100_000
_COLLECT_SEQS_MAX = 2000


def maintain(dataset: Dataset, host: Host, progress: Progress, head: HeadState) -> None:
    """Keep the chain short, and the store free of what nothing refers to. No seq is dropped: that is asked for by name.

    The publish that made ``head`` has succeeded whatever becomes of this; the next one tries again.
    """
    seq = head.manifest.seq
    with contextlib.suppress(BoxlinkError):
        done = compact(dataset, host, progress, budget_bytes=COMPACT_BUDGET_BYTES, head=head)
        if not done.merges and snap_without(head.manifest, ATTACH_ENTRIES_MIN):
            attach(dataset, host, progress, entries_min=ATTACH_ENTRIES_MIN, head=head)
        if seq % COLLECT_EVERY == 0 and seq <= _COLLECT_SEQS_MAX:
            from synclib.core.retention import Retention
            from synclib.engine.collect import collect

            collect(dataset, host, Retention(), None, progress)
