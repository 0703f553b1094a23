"""What differs between two seqs, while compactions and collections go on: as :mod:`synclib.lazy.steady` does it."""

from __future__ import annotations

from collections.abc import Iterator

from synclib.core.entry import Entry
from synclib.core.manifest import Manifest
from synclib.errors import Missing
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_reader import StoreRuns

# So many times in a row may a chain be gone before the next difference is found.
_TRIES_MAX = 8


def steady_changes(dataset: Dataset, old: Manifest, new: Manifest) -> Iterator[tuple[Entry | None, Entry | None]]:
    """(before, after) of each path that differs, in order. What differs does not depend on how the chains are cut, so
    where one is gone the walk begins anew with the seqs' present chains, and what was told already is passed over."""
    told = b""
    tries = 0
    while True:
        source = StoreRuns(dataset.store)
        chains = [Chain.of(source, dataset.root, manifest.runs) for manifest in (old, new)]
        try:
            for before, after in changes(chains[0], chains[1]):
                entry = after or before
                assert entry is not None
                if entry.key > told:
                    told, tries = entry.key, 0
                    yield before, after
        except Missing as error:
            tries += 1
            present = [dataset.manifest_at(manifest.seq) if error.key else manifest for manifest in (old, new)]
            if tries > _TRIES_MAX or [item.runs for item in present] == [old.runs, new.runs]:
                raise
            old, new = present
        else:
            return
