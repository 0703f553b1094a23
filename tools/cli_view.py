"""A reader of a dataset straight from the store, for the verbs that look without restoring."""

from __future__ import annotations

from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.view import ChunkSource, View


def open_view(dataset: Dataset, seq: int | None) -> View:
    """The dataset at a seq (None: the newest)."""
    manifest = dataset.manifest_at(seq)
    chain = Chain.of(StoreRuns(dataset.store), dataset.root, manifest.runs)
    return View(manifest, chain, ChunkSource(dataset.store, dataset.root))
