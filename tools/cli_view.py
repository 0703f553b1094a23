"""A reader of a dataset straight from the store, for the verbs that look without restoring."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from synclib.core.manifest import Manifest
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.lazy.view import RANGES_AT_ONCE, View
from tools.cli_context import Context


@contextmanager
def opened_view(context: Context, dataset: Dataset, seq: int | None) -> Iterator[View]:
    """The dataset at a seq (None: the newest). What is far is asked for side by side, and kept where mounts of the
    dataset keep it, too."""
    if not dataset.store.url.startswith("s3:"):
        yield open_view(dataset, seq)
        return
    from concurrent.futures import ThreadPoolExecutor

    manifest = dataset.manifest_at(seq)
    with ThreadPoolExecutor(RANGES_AT_ONCE) as executor:
        view = _shared(context, dataset, manifest) or open_view(dataset, manifest.seq, executor=executor)
        with contextlib.closing(view):
            yield view


def _shared(context: Context, dataset: Dataset, manifest: Manifest) -> View | None:
    """By way of this node's cache; None where there can be none."""
    from synclib.engine.shared_reader import open_shared
    from tools.cli_engine import open_host

    try:
        # Nothing is asked of the store yet: what fails is the disk.
        return open_shared(dataset, open_host(context), manifest)
    except BoxlinkError:
        return None
