"""A reader of a restored directory: its own files where they hold the right bytes, else the store.

Files may change under a reader while a newer seq is being brought down. So every chunk read here is hashed against the
seq's entry, and one that is another's, or no longer there, is fetched from the store.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from synclib.core.entry import ChunkRef, Entry
from synclib.core.manifest import Manifest
from synclib.core.names import ACTIVE, dataset_root
from synclib.core.streaming import Landing, Stretch
from synclib.disk.held import Held
from synclib.disk.tree import open_tree
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_cache import RunCache
from synclib.lazy.run_reader import RangeSource
from synclib.lazy.view import ChunkSource, View
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store

if TYPE_CHECKING:
    from concurrent.futures import Executor


def open_local(
    data_dir: str,
    dataset: str,
    store: Store | None,
    seq: int | None = None,
    *,
    executor: Executor | None = None,
    runs: Path | None = None,
    names: RangeSource | None = None,
    manifest: Manifest | None = None,
) -> LocalView:
    """A reader of ``data_dir/dataset`` at a seq (None: the one that stands there), restored or mounted there.

    Seqs that stood there lately need no store; others are looked up in it. Without a store, bytes that are no longer
    here are Unavailable. ``executor``: threads for what is asked of a store side by side. ``runs``: where
    whole copies of runs are kept for a directory that has none of its own, a mounted one: names are then looked up
    here, as in a restored one. ``names``: where runs of such a directory are read instead, block by block.
    ``manifest``: that of the seq, where the caller has it.
    """
    root = dataset_root(dataset)
    directory = Path(data_dir) / dataset
    held = Held(directory)
    state = held.read()
    if seq is None:
        if state is None or not state.seq:
            raise Missing(f"nothing has been restored into {directory}", hint=f"touch {directory / ACTIVE}")
        seq = state.seq
    manifest = manifest or _manifest(held, store, root, seq)
    backing: Store = _NoStore() if store is None else store
    source: RangeSource = RunCache(held.runs, backing)
    if state is None and names is not None:
        source = names
    elif state is None and runs is not None:
        source = cache = RunCache(runs, backing)
        # Where the disk is full names are looked up in the store.
        with contextlib.suppress(OSError), cache.in_use():
            cache.fill(root, manifest.runs)
            cache.prune(manifest.runs)
    return LocalView(manifest, root, directory, source, ChunkSource(backing, root, executor))


def _manifest(held: Held, store: Store | None, root: str, seq: int) -> Manifest:
    try:
        return held.manifest(seq)
    except Missing:
        if store is None:
            raise
        return Dataset(store, root).manifest_at(seq)


class LocalView(View):
    """A view whose chunks come from a restored directory first."""

    def __init__(self, manifest: Manifest, root: str, directory: Path, runs: RangeSource, source: ChunkSource) -> None:
        chain = Chain.of(runs, root, manifest.runs)
        super().__init__(manifest, chain, source)
        # Open the runs now: a restore may prune the copies that are read later by path.
        chain.open()
        for run in chain.runs:
            _ = run.tail
        self._tree = open_tree(os.fsencode(directory))
        self._lock = threading.Lock()

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        descriptor = self._open(entry)
        lacking = landings
        if descriptor is not None:
            try:
                lacking = [landing for landing in landings if not _land_local(descriptor, landing, stretch)]
            finally:
                os.close(descriptor)
        if lacking:
            self._source.fill(entry, lacking, stretch)

    def _open(self, entry: Entry) -> int | None:
        """A descriptor of what stands at an entry's path, if that is a file."""
        with self._lock:
            try:
                return self._tree.open_file(entry)
            except (OSError, Corrupt):
                self._tree.forget()
                return None

    def close(self) -> None:
        with self._lock:
            self._tree.close()


def _land_local(descriptor: int, landing: Landing, stretch: Stretch) -> bool:
    """Put a chunk to its places, if an open file has it at the first of them."""
    plain = _read_chunk(descriptor, landing.chunk, landing.offsets[0])
    if plain is None:
        return False
    stretch.land(plain, landing)
    return True


def _read_chunk(descriptor: int, chunk: ChunkRef, offset: int) -> bytes | None:
    """A chunk's bytes, if an open file has them there and can be read: a lazy mount's cannot without its store, whose
    own error then says more."""
    try:
        data = os.pread(descriptor, chunk.plain_bytes, offset)
    except OSError:
        return None
    return data if blake3(data).digest() == chunk.hash else None


class _NoStore:
    """Stands where there is no store: whatever would have to be fetched is Unavailable."""

    url = "none:"

    def _refuse(self, key: str) -> BoxlinkError:
        return Unavailable("it is not here, and no store is named to fetch it from", key=key, hint="use --store URL")

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        raise self._refuse(key)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        raise self._refuse(key)

    def get_suffix(self, key: str, length: int) -> Fetched:
        raise self._refuse(key)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        raise self._refuse(key)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        raise self._refuse(key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        raise self._refuse(prefix)
