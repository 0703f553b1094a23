"""What a lazy mount needs of a seq, made ready before anything is mounted, and the worker that then serves it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from synclib.core.entry import ADDRESS_UNIT
from synclib.core.extent_map import MAGIC, decode_tail
from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest
from synclib.core.tail import FOOTER_BYTES, tail_bytes
from synclib.disk.atomic import write_atomic
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_limits import limits_of
from synclib.disk.faults import disk_errors
from synclib.engine.cache_upkeep import CacheUpkeep
from synclib.engine.host import Connect, Host
from synclib.engine.lease import pin
from synclib.engine.mount_control import MountControl
from synclib.errors import BoxlinkError, Corrupt
from synclib.lazy.blob import DEADLINE_S, Blob, MapReader
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.fuse_server import FuseServer
from synclib.lazy.metadata import Metadata, metadata_of
from synclib.lazy.mounted_seqs import MountedSeqs, mounted
from synclib.lazy.run_cache import RunCache

# The kernel gives up what our own deadline did not: a worker that stands still.
_KERNEL_TIMEOUT_S = int(DEADLINE_S) * 2
_PIN_CHECK_S = 600.0
_RETIRE_S = 10.0


class Prepared(msgspec.Struct, frozen=True):
    """All that a worker must know, as it is handed from process to process."""

    root: str
    seq: int
    digest: str
    address_end: int
    image: str
    map: str
    cache: str  # directory of the dataset's blob
    left_out: int

    @property
    def blob_bytes(self) -> int:
        return self.address_end * ADDRESS_UNIT


def prepare(dataset: Dataset, host: Host, manifest: Manifest) -> Prepared:
    """Bring the metadata of a seq here; no file's content is read."""
    directory = host.dataset_cache(dataset.store.url, dataset.root)
    runs = RunCache(directory / "run", dataset.store)
    with runs.in_use():
        runs.fill(dataset.root, manifest.runs)
        chain = Chain.of(runs, dataset.root, manifest.runs)
        found: Metadata = metadata_of(manifest, chain, directory / "lazy")
    return Prepared(
        dataset.root,
        manifest.seq,
        manifest.digest,
        manifest.address_end,
        os.fspath(found.image),
        os.fspath(found.map),
        os.fspath(directory / "lazy"),
        found.left_out,
    )


def serve(
    prepared: Prepared,
    connect: Connect,
    host: Host,
    device: int,
    *,
    is_successor: bool,
    restarts: int,
    cache_bytes_max: int | None,
    retiring: threading.Event,
    on_retired: Callable[[], None],
    on_ready: Callable[[MountControl], None],
    on_error: Callable[[BoxlinkError], None],
) -> None:
    """A worker's life: answer the requests on ``device`` until the mount is gone, or another worker has its place:
    after ``retiring`` is set what was taken is answered, then ``on_retired`` called, which ends the process, for
    threads that wait for a request would take it. ``on_ready`` is given what tells how it goes and takes orders."""
    store, _ = connect.opened
    directory = Path(prepared.cache)
    cache = BlobCache(directory, prepared.address_end, limits_of(directory, cache_bytes_max))
    _note_dataset(directory, store.url, prepared.root)
    with mounted(directory, msgspec.json.encode(prepared)), open(prepared.map, "rb") as file:
        extents = map_reader(file.fileno())
        seqs = MountedSeqs(directory, open_map)
        upkeep = CacheUpkeep(cache, extents, prepared.address_end, seqs, host.clock, on_error)
        blob = Blob(store, prepared.root, extents, cache, host.clock)
        server = FuseServer(device, blob, prepared.blob_bytes, _KERNEL_TIMEOUT_S, on_error)
        ended = threading.Event()
        holder = threading.Thread(target=_hold, args=(Dataset(store, prepared.root), host, prepared.seq, ended))
        holder.start()

        def retire() -> None:
            retiring.wait()
            if not ended.is_set():
                ended.set()
                upkeep.end()
                holder.join(_RETIRE_S)
                cache.sync()
                server.retire(_RETIRE_S)
                on_retired()

        threading.Thread(target=retire, name="retire", daemon=True).start()
        try:
            if is_successor:
                server.take_over()
            upkeep.start()
            on_ready(MountControl(blob, cache, upkeep, restarts))
            server.serve()
        finally:
            ended.set()
            upkeep.end()
            blob.close()
            cache.sync()
            cache.close()
            holder.join()


class _Cached(msgspec.Struct, frozen=True):
    store: str
    root: str


def _note_dataset(directory: Path, store: str, root: str) -> None:
    """Whose cache it is: its name is a hash. Where the disk is full it goes without."""
    data = msgspec.json.encode(_Cached(store, root))
    with contextlib.suppress(OSError):
        if not (directory / "dataset.json").exists():
            write_atomic(directory / "dataset.json", data)


def cached_dataset(directory: Path) -> tuple[str, str]:
    """(store, root) of the dataset that a cache is of; empty where it does not say."""
    try:
        found = msgspec.json.decode((directory / "dataset.json").read_bytes(), type=_Cached)
    except (OSError, *DECODE_ERRORS):
        return "", ""
    return found.store, found.root


@contextlib.contextmanager
def open_map(data: bytes) -> Iterator[MapReader]:
    """The map of what a worker said that it serves."""
    try:
        prepared = msgspec.json.decode(data, type=Prepared)
    except DECODE_ERRORS as error:
        raise Corrupt("what another mount says of itself does not decode") from error
    with disk_errors(), open(prepared.map, "rb") as file:
        yield map_reader(file.fileno())


def map_reader(descriptor: int) -> MapReader:
    """A map in a file."""
    size = os.fstat(descriptor).st_size
    length = tail_bytes(MAGIC, "map", os.pread(descriptor, FOOTER_BYTES, max(size - FOOTER_BYTES, 0)))
    tail = decode_tail(os.pread(descriptor, length, size - length), size)
    return MapReader(tail, lambda start, stop: os.pread(descriptor, stop - start, start))


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
