"""Where a render server reads its dataset: in the node's directory, or past it where nothing stands there."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from render.core.covers import Covers
from render.walls import listed_covers
from synclib.core.manifest import Manifest
from synclib.core.names import dataset_root
from synclib.disk.markers import Markers
from synclib.disk.pieces import PieceCache
from synclib.engine.cache_work import Background
from synclib.engine.host import Host
from synclib.engine.local import open_local
from synclib.engine.mount_control import Ready
from synclib.engine.shared_reader import NoCache, WorkingView, open_at_work, open_uncached
from synclib.errors import BoxlinkError, Corrupt, Missing, Unsupported
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import CachedRuns
from synclib.lazy.pictures import changed_pictures, read_wall_index, wall_index_of
from synclib.lazy.run_reader import StoreRuns
from synclib.reader import Reader
from synclib.store.base import Store
from synclib.store.retry import untried
from tools.mount_control import ask
from tools.mounted import find_mount

_ASKED_AT_ONCE = 16
_NAMES_BYTES = 1 << 30


class RenderReader:
    """Opens a dataset at a seq: restored, mounted, or, where synch.down says ``reader``, in this process, which then
    fetches ahead by itself what belongs to the seq that is asked for (all of it), and of others what is read.

    Of one that is not restored, and has a wall index, no run is brought here: names are looked up block by block.
    """

    def __init__(self, data: Path, name: str, store: Store, host: Host, log: FilteringBoundLogger) -> None:
        self._data, self._name, self._store, self._host, self._log = data, name, store, host, log
        self._dataset = Dataset(store, dataset_root(name))
        # A cover is not tried again: the proxy asks another server, and who waited here would keep others waiting.
        self._covers_store = untried(store)
        self._cache = host.dataset_cache(store.url, self._dataset.root)
        self._markers = Markers(data / name)
        # Both live as long as the process.
        self._names = CachedRuns(
            StoreRuns(store, ThreadPoolExecutor(_ASKED_AT_ONCE)),
            PieceCache(self._cache / "lazy" / "tree", _NAMES_BYTES),
        )
        self._indexed: dict[int, Manifest] = {}  # those that have a wall index, by seq
        self._starting: list[WorkingView] = []  # what was opened before anything was served
        self._is_ready = False

    def open(self, seq: int) -> Reader:
        down = self._markers.down()
        mode = "eager" if down is None else down.mode
        if mode not in ("lazy", "reader"):
            return open_local(str(self._data), self._name, self._covers_store, seq, runs=self._cache / "run")
        manifest = self._dataset.manifest_at(seq)
        if wall_index_of(manifest) is not None:
            self._indexed[seq] = manifest
        if mode == "reader":
            assert down is not None
            return self._in_process(manifest, Background(is_whole=seq == down.seq))
        names = self._names if seq in self._indexed else None
        runs = self._cache / "run"
        return open_local(
            str(self._data), self._name, self._covers_store, seq, runs=runs, names=names, manifest=manifest
        )

    def _in_process(self, manifest: Manifest, background: Background) -> Reader:
        is_start_up = not self._is_ready
        try:
            found = open_at_work(self._dataset, self._host, manifest, background, self._say, is_start_up=is_start_up)
        except NoCache as error:
            self._say(error.reason)
            return open_uncached(self._dataset, self._host, manifest)
        if is_start_up:
            self._starting.append(found)
        return found

    def say_ready(self) -> None:
        """It is served: the start-up is over, for whoever fetches what is read here and records it. A mount that
        nobody serves need not know, nor one that does not answer."""
        self._is_ready = True
        starting, self._starting = self._starting, []
        for view in starting:
            view.work.start_up.end()
        mount = find_mount(self._host.state, os.path.realpath(self._data / self._name))
        if mount is not None:
            ask(mount[0], Ready())

    def list_covers(self, reader: Reader) -> Covers:
        """By the wall index, with the diffs since laid over it; by a listing where there is none that can be used."""
        manifest = self._indexed.pop(reader.seq, None)
        if manifest is not None:
            try:
                return self._indexed_covers(manifest)
            except (Corrupt, Missing, Unsupported) as error:
                self._say(error)
        return listed_covers(reader)

    def _indexed_covers(self, manifest: Manifest) -> Covers:
        item = wall_index_of(manifest)
        assert item is not None
        covers = Covers()
        for lengths, paths in read_wall_index(item, self._dataset.root, self._names):
            covers.append_many(lengths, paths)
        diffs = manifest.runs[1:]
        if not diffs:
            return covers
        return covers.with_changes(changed_pictures(Chain.of(self._names, self._dataset.root, diffs)))

    def _say(self, error: BoxlinkError) -> None:
        self._log.warning("the cache, or what is in it", **error.as_dict())
