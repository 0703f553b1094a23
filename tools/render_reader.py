"""Where a render server reads its dataset: in the node's directory, or past it where nothing stands there."""

from __future__ import annotations

from pathlib import Path

from structlog.typing import FilteringBoundLogger

from render.walls import OpenReader
from synclib.core.names import dataset_root
from synclib.disk.markers import Markers
from synclib.engine.cache_work import Background
from synclib.engine.host import Host
from synclib.engine.local import open_local
from synclib.engine.shared_reader import open_at_work
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset
from synclib.reader import Reader
from synclib.store.base import Store


def reader_opener(data: Path, name: str, store: Store, host: Host, log: FilteringBoundLogger) -> OpenReader:
    """What opens the dataset at a seq: restored, mounted, or, where synch.down says ``reader``, in this process, which
    then fetches ahead by itself what belongs to the seq that is asked for (all of it), and of others what is read."""
    dataset = Dataset(store, dataset_root(name))
    runs = host.dataset_cache(store.url, dataset.root) / "run"
    markers = Markers(data / name)

    def say(error: BoxlinkError) -> None:
        log.warning("the cache", **error.as_dict())

    def open_reader(seq: int) -> Reader:
        down = markers.down()
        if down is None or down.mode != "reader":
            return open_local(str(data), name, store, seq, runs=runs)
        background = Background(is_whole=seq == down.seq)
        return open_at_work(dataset, host, dataset.manifest_at(seq), background, say)

    return open_reader
