"""A reader of a restored directory: its own files where they hold the right bytes, else the store.

Files may change under a reader while a newer seq is being brought down. So every chunk read here is hashed against the
seq's entry, and one that is another's, or no longer there, is fetched from the store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from synclib.core import names
from synclib.core.entry import ChunkRef, Entry
from synclib.core.manifest import Manifest
from synclib.disk.held import Held
from synclib.disk.tree import open_tree
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_cache import RunCache
from synclib.lazy.view import ChunkSource, View
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store


def open_local(data_dir: str, dataset: str, store: Store | None, seq: int | None = None) -> LocalView:
    """A reader of ``data_dir/dataset`` at a seq (None: the one that stands there).

    Seqs that stood there lately need no store; others are looked up in it. Without a store, bytes that are no longer
    here are Unavailable.
    """
    root = names.dataset_root(dataset)
    directory = Path(data_dir) / dataset
    held = Held(directory)
    state = held.read()
    if seq is None:
        if state is None or not state.seq:
            raise Missing(f"nothing has been restored into {directory}", hint=f"touch {directory / names.ACTIVE}")
        seq = state.seq
    manifest = _manifest(held, store, root, seq)
    return LocalView(manifest, root, directory, held, store)


def _manifest(held: Held, store: Store | None, root: str, seq: int) -> Manifest:
    try:
        return held.manifest(seq)
    except Missing:
        if store is None:
            raise
        return Dataset(store, root).manifest_at(seq)


class LocalView(View):
    """A view whose chunks come from a restored directory first."""

    def __init__(self, manifest: Manifest, root: str, directory: Path, held: Held, store: Store | None) -> None:
        backing: Store = _NoStore() if store is None else store
        chain = Chain.of(RunCache(held.runs, backing), root, manifest.runs)
        super().__init__(manifest, chain, ChunkSource(backing, root))
        for run in chain.runs:
            # Open the runs now: a restore may prune the copies that are read later by path.
            _ = run.tail
        self._tree = open_tree(os.fsencode(directory))
        self._lock = threading.Lock()

    def read_chunks(self, entry: Entry, first: int, stop: int) -> list[bytes]:
        offset = sum(chunk.plain_bytes for chunk in entry.chunks[:first])
        chunks = entry.chunks[first:stop]
        local = self._read_local(entry, chunks, offset)
        lacking = tuple(chunk for chunk, data in zip(chunks, local, strict=True) if data is None)
        fetched = iter(self._source.read(entry, lacking) if lacking else ())
        return [next(fetched) if data is None else data for data in local]

    def _read_local(self, entry: Entry, chunks: tuple[ChunkRef, ...], offset: int) -> list[bytes | None]:
        """Each chunk's bytes if the file at this path holds them at their place."""
        try:
            with self._lock:
                descriptor = self._tree.open_file(entry)
        except (OSError, Corrupt):
            with self._lock:
                self._tree.forget()
            return [None] * len(chunks)
        found: list[bytes | None] = []
        try:
            for chunk in chunks:
                data = os.pread(descriptor, chunk.plain_bytes, offset)
                found.append(data if blake3(data).digest() == chunk.hash else None)
                offset += chunk.plain_bytes
        finally:
            os.close(descriptor)
        return found

    def close(self) -> None:
        with self._lock:
            self._tree.close()


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
