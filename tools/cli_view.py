"""A reader of a dataset straight from the store, for the verbs that look without restoring."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from synclib.core.manifest import Manifest
from synclib.core.names import head_key
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_manifest
from synclib.lazy.steady import SteadyView
from synclib.lazy.view import RANGES_AT_ONCE, View
from tools.cli_context import Context

# For a hint: so many are asked for, each with two requests.
_DATASETS_MAX = 50


@contextmanager
def opened_view(context: Context, dataset: Dataset, seq: int | None) -> Iterator[View]:
    """The dataset at a seq (None: the newest). What is far is asked for side by side, and kept where mounts of the
    dataset keep it, too. A dataset or a path that is not there is Missing, with what is there in the hint."""
    with _hinting(dataset), _opened(context, dataset, seq) as view:
        try:
            yield view
        except Missing as error:
            from tools.near_text import path_hint

            with contextlib.suppress(BoxlinkError):
                near = view.near(os.fsencode(error.path)) if error.path and not error.hint else None
                error.hint = path_hint(dataset.name, near) if near is not None else error.hint
            raise


@contextmanager
def _hinting(dataset: Dataset) -> Iterator[None]:
    try:
        yield
    except Missing as error:
        if error.key == head_key(dataset.root):
            from tools.cli_engine import dataset_names
            from tools.near_text import dataset_hint

            with contextlib.suppress(BoxlinkError):
                names = dataset_names(dataset.store, count_max=_DATASETS_MAX)
                error.hint = dataset_hint(dataset.name, names) or error.hint
        raise


@contextmanager
def _opened(context: Context, dataset: Dataset, seq: int | None) -> Iterator[View]:
    manifest = dataset.manifest_at(seq)
    if not dataset.store.url.startswith("s3:"):
        yield open_manifest(dataset, manifest)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(RANGES_AT_ONCE) as executor:

        def opened(found: Manifest) -> View:
            return _shared(context, dataset, found) or open_manifest(dataset, found, executor=executor)

        with contextlib.closing(SteadyView(dataset, manifest, opened)) as view:
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
