"""What a lazy mount needs of a seq, made ready before anything is mounted, and the worker that then serves it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.manifest import Manifest
from synclib.disk.blob_cache import BlobCache
from synclib.engine.host import Connect, Host
from synclib.engine.lease import pin
from synclib.errors import BoxlinkError
from synclib.lazy.base_image import BaseImage
from synclib.lazy.blob import DEADLINE_S, Blob, Extents, MapReader
from synclib.lazy.dataset import Dataset
from synclib.lazy.fuse_server import FuseServer, ServedFile, ServedFiles
from synclib.lazy.maps import Layered, ObjectMap, file_map
from synclib.lazy.metadata import Metadata, Sources, metadata_of
from synclib.lazy.run_cache import RunCache
from synclib.lazy.served_image import ServedImage
from synclib.store.base import Store

# The kernel gives up what our own deadline did not: a worker that stands still.
_KERNEL_TIMEOUT_S = int(DEADLINE_S) * 2
_PIN_CHECK_S = 600.0
_ASKED_AT_ONCE = 16


class Prepared(msgspec.Struct, frozen=True):
    """All that a worker must know, as it is handed from process to process."""

    root: str
    seq: int
    digest: str
    address_end: int
    image: str  # path of the whole image; empty where it is served beside the blob
    metadata: Metadata
    cache: str  # directory of the dataset's blob

    @property
    def blob_bytes(self) -> int:
        return self.address_end * ADDRESS_UNIT


def prepare(dataset: Dataset, host: Host, manifest: Manifest) -> Prepared:
    """Bring the metadata of a seq here; no file's content is read."""
    directory = host.dataset_cache(dataset.store.url, dataset.root)
    runs = RunCache(directory / "run", dataset.store)
    with runs.in_use(), ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
        sources = Sources(dataset.store, dataset.root, runs, directory / "lazy", executor)
        found = metadata_of(manifest, sources)
    return Prepared(
        dataset.root,
        manifest.seq,
        manifest.digest,
        manifest.address_end,
        found.image,
        found,
        os.fspath(directory / "lazy"),
    )


def serve(
    prepared: Prepared,
    connect: Connect,
    host: Host,
    device: int,
    *,
    is_successor: bool,
    on_ready: Callable[[Callable[[], dict[str, object]]], None],
    on_error: Callable[[BoxlinkError], None],
) -> None:
    """A worker's life: answer the requests on ``device`` until the mount is gone. ``on_ready`` is given what tells how
    it goes."""
    store, _ = connect.opened
    cache = BlobCache(Path(prepared.cache), prepared.address_end)
    with opened(prepared, store) as (extents, image):
        blob = Blob(store, prepared.root, extents, cache, host.clock)
        files = [ServedFile(b"blob", prepared.blob_bytes, blob.read)]
        if image is not None:
            files.append(ServedFile(b"image", image.image_bytes, image.read))
        server = FuseServer(device, ServedFiles(files), _KERNEL_TIMEOUT_S, on_error)
        ended = threading.Event()
        holder = threading.Thread(target=_hold, args=(Dataset(store, prepared.root), host, prepared.seq, ended))
        holder.start()
        try:
            if is_successor:
                server.take_over()
            on_ready(lambda: _figures(blob, cache))
            server.serve()
        finally:
            ended.set()
            blob.close()
            cache.sync()
            cache.close()
            holder.join()


def _figures(blob: Blob, cache: BlobCache) -> dict[str, object]:
    """How a mount does: times in milliseconds, of the latest thousand faults."""
    counts, taken = blob.counts, sorted(blob.counts.fault_s.copy())  # at once: others add to it
    return {
        "reads": counts.reads,
        "faults": counts.faults,
        "errors": counts.errors,
        "fetched_chunks": counts.fetched_chunks,
        "fetched_bytes": counts.fetched_bytes,
        "cache_bytes": cache.held_bytes(),
        "fault_p50_ms": round(taken[len(taken) // 2] * 1000, 3) if taken else 0.0,
        "fault_p99_ms": round(taken[len(taken) * 99 // 100] * 1000, 3) if taken else 0.0,
    }


@contextlib.contextmanager
def opened(prepared: Prepared, store: Store) -> Iterator[tuple[Extents, ServedImage | None]]:
    """What says where the bytes of a seq are, and its image where that is not here whole. The store is asked only for
    what was never here."""
    found = prepared.metadata
    with contextlib.ExitStack() as stack:
        layers: list[MapReader] = []
        if found.map:
            layers.append(file_map(stack.enter_context(open(found.map, "rb"))))
        image: ServedImage | None = None
        if found.snap is not None:
            executor = stack.enter_context(ThreadPoolExecutor(_ASKED_AT_ONCE))
            sources = Sources(store, prepared.root, RunCache(Path(), store), Path(prepared.cache), executor)
            mirrors = [sources.mirror(item) for item in (found.snap.map, found.snap.image)]
            for mirror in mirrors:
                stack.callback(mirror.close)
            layers.append(ObjectMap(found.snap.map, mirrors[0]))
            if not found.image:
                image = ServedImage(BaseImage(found.snap.image, mirrors[1], executor), Path(found.patch))
                stack.callback(image.close)
        yield Layered(layers), image


def _hold(dataset: Dataset, host: Host, seq: int, ended: threading.Event) -> None:
    """Keep collectors away from a seq while it is served. A node may have no right to write: then it goes without."""
    holder = pin(dataset, host)
    while True:
        with contextlib.suppress(BoxlinkError):
            if not holder.is_held:
                holder.take(dataset.read_head(), seq)
            holder.renew()
        if ended.wait(_PIN_CHECK_S):
            break
    holder.end()
