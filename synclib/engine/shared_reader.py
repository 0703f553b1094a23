"""The in-process reader on a machine that keeps what it reads: it shares the dataset's cache with mounts and with other
readers, and needs no privilege, no /dev/fuse and no daemon.

With :class:`Background` it does in its process what a mount's worker does in its own: it fetches ahead what earlier
start-ups needed, then all else, and records the trace of this one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from synclib.core.manifest import Manifest
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_limits import limits_of
from synclib.disk.faults import disk_errors
from synclib.engine.cache_work import Background, CacheWork, hold_seq, note_dataset
from synclib.engine.host import Host
from synclib.engine.mount import open_map, prepare_tree
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Blob
from synclib.lazy.cached_source import CachedSource
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.mounted_seqs import MountedSeqs, mounted
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.tree_chain import opened_chain
from synclib.lazy.view import RANGES_AT_ONCE, ChunkSource, Source, View

_marks = itertools.count(1)


class SharedView(View):
    """A view with ``resources`` that are closed with it."""

    def __init__(self, manifest: Manifest, chain: Chain, source: Source, resources: contextlib.ExitStack) -> None:
        super().__init__(manifest, chain, source)
        self._resources = resources

    def close(self) -> None:
        self._resources.close()


class WorkingView(SharedView):
    """One beside which ``work`` goes on."""

    def __init__(
        self,
        manifest: Manifest,
        chain: Chain,
        source: CachedSource,
        resources: contextlib.ExitStack,
        work: CacheWork,
    ) -> None:
        super().__init__(manifest, chain, source, resources)
        self.work = work


def open_shared(dataset: Dataset, host: Host, manifest: Manifest) -> SharedView:
    """A reader for a short while: nothing goes on in the background. Full and the like where there can be no cache."""
    directory = host.dataset_cache(dataset.store.url, dataset.root) / "lazy"
    with contextlib.ExitStack() as stack:
        with disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
        chain = stack.enter_context(opened_chain(dataset.store, dataset.root, manifest.runs, directory))
        cache = stack.enter_context(
            contextlib.closing(BlobCache(directory, manifest.address_end, limits_of(directory, None)))
        )
        note_dataset(directory, dataset.store.url, dataset.root)
        extents = EntryExtents(chain)
        blob = stack.enter_context(contextlib.closing(Blob(dataset.store, dataset.root, extents, cache, host.clock)))
        source = CachedSource(blob, cache, extents, _far(dataset, stack))
        return SharedView(manifest, chain, source, stack.pop_all())


class NoCache(Exception):
    """The disk is full, or fails, so that nothing can be kept here. ``reason``: what it said."""

    def __init__(self, reason: BoxlinkError) -> None:
        super().__init__(reason.message)
        self.reason = reason


def open_at_work(
    dataset: Dataset,
    host: Host,
    manifest: Manifest,
    background: Background,
    on_error: Callable[[BoxlinkError], None],
    *,
    is_start_up: bool = True,
) -> WorkingView:
    """A reader for long: what a mount's worker does in the background goes on here until it is closed. NoCache where
    there can be none. ``is_start_up``: whoever reads begins to, and will say when it has (``work.start_up``)."""
    directory = host.dataset_cache(dataset.store.url, dataset.root) / "lazy"
    with contextlib.ExitStack() as stack:
        cache = _opened_cache(directory, manifest)
        with contextlib.ExitStack() as until_work:
            until_work.callback(cache.close)
            prepared = prepare_tree(dataset, host, manifest, "read in a process of its own")
            chain = stack.enter_context(opened_chain(dataset.store, dataset.root, manifest.runs, directory))
            extents = EntryExtents(chain)
            stack.enter_context(mounted(directory, msgspec.json.encode(prepared), f"-{next(_marks)}"))
            work = CacheWork(
                dataset,
                host,
                manifest.seq,
                prepared.word,
                cache,
                extents,
                MountedSeqs(directory, lambda data: open_map(data, dataset.store)),
                background,
                address_end=manifest.address_end,
                total_bytes=manifest.plain_bytes,
                ready=None,
                near=None,
                is_seen_whole=is_start_up,
                on_whole=lambda stamp: None,
                on_error=on_error,
            )
            until_work.pop_all()  # it is the work's to close
        stack.callback(work.close)
        if not is_start_up:
            work.start_up.end()
        work.hold()
        work.start()
        source = CachedSource(work.blob, cache, extents, _far(dataset, stack))
        return WorkingView(manifest, chain, source, stack.pop_all(), work)


def open_uncached(dataset: Dataset, host: Host, manifest: Manifest) -> SharedView:
    """A reader for long where there can be no cache: what is read comes from the store each time."""
    with contextlib.ExitStack() as stack:
        far = _far(dataset, stack)
        runs = StoreRuns(dataset.store, stack.enter_context(ThreadPoolExecutor(RANGES_AT_ONCE)))
        chain = Chain.of(runs, dataset.root, manifest.runs)
        ended = threading.Event()
        holder = threading.Thread(target=hold_seq, args=(dataset, host, manifest.seq, ended), name="hold")
        holder.start()
        stack.callback(holder.join)
        stack.callback(ended.set)
        return SharedView(manifest, chain, far, stack.pop_all())


def _opened_cache(directory: Path, manifest: Manifest) -> BlobCache:
    try:
        with disk_errors():
            directory.mkdir(parents=True, exist_ok=True)
            return BlobCache(directory, manifest.address_end, limits_of(directory, None))
    except BoxlinkError as error:
        raise NoCache(error) from error


def _far(dataset: Dataset, stack: contextlib.ExitStack) -> ChunkSource:
    """What much at once is asked of: in threads of its own, which start when they are needed."""
    return ChunkSource(dataset.store, dataset.root, stack.enter_context(ThreadPoolExecutor(RANGES_AT_ONCE)))
