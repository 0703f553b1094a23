"""What a publisher does for the chain after it has published, within a budget: compaction, now and then collection."""

from __future__ import annotations

from synclib.disk.faults import is_of_the_world
from synclib.engine.attach import attach, snap_without
from synclib.engine.compact import compact
from synclib.engine.host import Host, Progress
from synclib.errors import BoxlinkError, Conflict, Interrupted
from synclib.lazy.dataset import Dataset, HeadState

# What a compaction that nobody asked for may read before it is put off: some seconds beside the publish it follows.
COMPACT_BUDGET_BYTES = 64 << 20
# Every so many seqs what killed publishers left is collected, as long as that takes few requests.
COLLECT_EVERY = 64
# Image and map of a snap cost some 8 us an entry, and spare every node as much: a small dataset's are made when
# somebody asks for a compaction.
ATTACH_ENTRIES_MIN = 100_000
_COLLECT_SEQS_MAX = 2000
NOT_DONE = "it is published, but its chain is not yet tidied; the next publish tries again"


def maintain(dataset: Dataset, host: Host, progress: Progress, head: HeadState) -> str:
    """Keep the chain short, and the store free of what nothing refers to. No seq is dropped: that is asked for by name.

    The publish that made ``head`` has succeeded whatever becomes of this; the next one tries again. Returns why not
    all was done, for people; nothing where all was, or another did it first.
    """
    try:
        _maintain(dataset, host, progress, head)
    except (Conflict, Interrupted):
        return ""
    except (BoxlinkError, MemoryError) as error:
        return f"{NOT_DONE}: {error}"
    except OSError as error:
        # A bug's, too, may not make a seq that is committed look as if it were not: it is said with its name.
        what = error.strerror if is_of_the_world(error) else repr(error)
        return f"{NOT_DONE}: {error.filename or 'the local disk'}: {what}"
    return ""


def _maintain(dataset: Dataset, host: Host, progress: Progress, head: HeadState) -> None:
    seq = head.manifest.seq
    done = compact(dataset, host, progress, budget_bytes=COMPACT_BUDGET_BYTES, head=head)
    if not done.merges and snap_without(head.manifest, ATTACH_ENTRIES_MIN):
        attach(dataset, host, progress, entries_min=ATTACH_ENTRIES_MIN, head=head)
    if seq % COLLECT_EVERY == 0 and seq <= _COLLECT_SEQS_MAX:
        from synclib.core.retention import Retention
        from synclib.engine.collect import collect

        collect(dataset, host, Retention(), None, progress)
