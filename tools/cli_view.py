"""A reader of a dataset straight from the store, for the verbs that look without restoring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.lazy.view import RANGES_AT_ONCE, View
from tools.cli_context import Context

_THREADS = RANGES_AT_ONCE  # of a large file; a chain has some 20 runs
_CACHE_BYTES = 1 << 30


@contextmanager
def opened_view(context: Context, dataset: Dataset, seq: int | None) -> Iterator[View]:
    """The dataset at a seq (None: the newest). What is far is asked for side by side, and kept for the next time."""
    if not dataset.store.url.startswith("s3:"):
        yield open_view(dataset, seq)
        return
    from concurrent.futures import ThreadPoolExecutor

    from synclib.disk.pieces import PieceCache
    from tools.cli_engine import open_host

    cache = PieceCache(open_host(context).dataset_cache(dataset.store.url, dataset.root) / "pieces", _CACHE_BYTES)
    with ThreadPoolExecutor(_THREADS) as executor:
        try:
            yield open_view(dataset, seq, executor=executor, cache=cache)
        finally:
            cache.close()
