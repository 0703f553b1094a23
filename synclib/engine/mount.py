"""What a lazy mount needs of a seq, made ready before anything is mounted, and the worker that then serves it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from synclib.clock import ulid_text
from synclib.core.entry import ADDRESS_UNIT
from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest, RunRef
from synclib.disk import hydrated
from synclib.disk.blob_cache import BlobCache
from synclib.disk.cache_limits import limits_of
from synclib.disk.faults import disk_errors
from synclib.engine.cache_work import Background, CacheWork
from synclib.engine.host import Connect, Host
from synclib.engine.mount_control import MountControl
from synclib.errors import BoxlinkError, Corrupt, Missing
from synclib.lazy.base_image import BaseImage
from synclib.lazy.blob import DEADLINE_S, Blob, Extents, MapReader
from synclib.lazy.dataset import Dataset
from synclib.lazy.entry_extents import EntryExtents
from synclib.lazy.fuse_server import FuseServer, Handler, ServedFile, ServedFiles
from synclib.lazy.maps import Layered, ObjectMap, file_map
from synclib.lazy.metadata import (
    Metadata,
    Sources,
    are_files_here,
    metadata_of,
    settle,
    settled_image,
    settled_metadata,
)
from synclib.lazy.mounted_seqs import MountedSeqs, mounted
from synclib.lazy.run_cache import RunCache
from synclib.lazy.served_image import ServedImage
from synclib.lazy.tree_chain import opened_chain
from synclib.lazy.tree_server import TreeServer
from synclib.lazy.volume_source import VolumeSource, open_volume
from synclib.store.base import Store
from synclib.store.retry import untried

# The kernel gives up what our own deadline did not: a worker that stands still.
_KERNEL_TIMEOUT_S = int(DEADLINE_S) * 2
_ASKED_AT_ONCE = 16
_RETIRE_S = 10.0


class Mode(StrEnum):
    """How a seq is mounted."""

    EROFS = "erofs"  # an image of its metadata, over a file that holds the bytes
    FUSE = "fuse"  # a tree, of which every lookup is answered


class VolumeRef(msgspec.Struct, frozen=True):
    """A volume that bytes are taken from first: made of a snapshot of some seq at or before the one that is mounted."""

    snapshot_id: str
    volume_id: str
    seq: int
    device: str
    blob_offset: int
    map: str  # path of a copy of the volume's map


class Prepared(msgspec.Struct, frozen=True):
    """All that a worker must know, as it is handed from process to process."""

    root: str
    seq: int
    digest: str
    address_end: int
    image: str  # path of the whole image; empty where it is served beside the blob
    metadata: Metadata
    cache: str  # directory of the dataset's blob
    plain_bytes: int = 0  # of all files
    mode: Mode = Mode.EROFS
    why: str = ""  # why it is not mounted in a better way
    runs: tuple[RunRef, ...] = ()  # of a tree alone: what it is read from
    published_at_ns: int = 0
    volume: VolumeRef | None = None
    why_no_volume: str = ""  # where it was asked for

    @property
    def blob(self) -> Path:
        """The cache's file."""
        return Path(self.cache) / "blob"

    @property
    def word(self) -> str:
        """Another one where the content is another, or lies in other packs, as after a repack."""
        runs = (ulid_text(run.ulid) for run in self.runs)
        return " ".join((self.digest, *sorted(self.metadata.stems()), *runs))

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
        manifest.plain_bytes,
        published_at_ns=manifest.published_at_ns,
    )


def prepare_tree(dataset: Dataset, host: Host, manifest: Manifest, why: str) -> Prepared:
    """As :func:`prepare` for a FUSE tree: the ends of the runs are brought here, in one round trip. ``why``: what keeps
    it from being mounted in a better way."""
    directory = host.dataset_cache(dataset.store.url, dataset.root) / "lazy"
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
    with opened_chain(dataset.store, dataset.root, manifest.runs, directory) as chain:
        chain.open()
    return Prepared(
        dataset.root,
        manifest.seq,
        manifest.digest,
        manifest.address_end,
        "",
        Metadata("", "", "", None, 0, "none: a tree needs no image"),
        os.fspath(directory),
        manifest.plain_bytes,
        Mode.FUSE,
        why,
        tuple(manifest.runs),
        manifest.published_at_ns,
    )


def is_hydrated(prepared: Prepared) -> bool:
    """Whether every byte is here, so that it can be mounted straight on the cache's file."""
    return bool(settled(prepared).image) and _is_hydrated(prepared, settled(prepared).image)


def settled(prepared: Prepared) -> Prepared:
    """As it can be mounted by now: an image that is served comes here whole when every byte is here."""
    if prepared.image or not prepared.metadata.patch:
        return prepared
    image = settled_image(prepared.metadata)
    if not _is_hydrated(prepared, image):
        return prepared
    return msgspec.structs.replace(prepared, image=image, metadata=settled_metadata(prepared.metadata))


def _is_hydrated(prepared: Prepared, image: str) -> bool:
    return hydrated.is_hydrated(Path(image), prepared.digest, prepared.blob)


def is_here(prepared: Prepared) -> bool:
    """Whether the files are here that it names: a cache may be deleted at any time. A tree needs none."""
    return are_files_here(prepared.metadata, prepared.digest, prepared.address_end, Path(prepared.cache))


def manifest_again(dataset: Dataset, prepared: Prepared) -> Manifest:
    """What a seq that was prepared once is prepared from anew. Missing where the store has it no more."""
    manifest = dataset.manifest_at(prepared.seq)
    if manifest.digest != prepared.digest:
        raise Missing(f"the store's seq {prepared.seq} is not the one that was mounted", dataset=dataset.name)
    return manifest


def _brought_again(prepared: Prepared, dataset: Dataset, host: Host) -> Prepared:
    """What a worker opens, where the cache was deleted under a mount. The image stays what it is: the kernel holds it;
    one that is served must be the very same, and is not made again."""
    with disk_errors():
        Path(prepared.cache).mkdir(parents=True, exist_ok=True)
    needed = prepared.metadata.patch, prepared.metadata.map
    if not prepared.image or all(os.path.exists(path) for path in needed if path):
        return prepared
    found = prepare(dataset, host, manifest_again(dataset, prepared))
    return msgspec.structs.replace(prepared, metadata=found.metadata)


def serve(
    prepared: Prepared,
    connect: Connect,
    host: Host,
    device: int,
    background: Background,
    ready: Path,
    *,
    is_successor: bool,
    is_start_up: bool,
    restarts: int,
    cache_bytes_max: int | None,
    retiring: threading.Event,
    on_retired: Callable[[], None],
    on_ready: Callable[[MountControl, FuseServer], None],
    on_error: Callable[[BoxlinkError], None],
) -> None:
    """A worker's life: answer the requests on ``device`` until the mount is gone, or another worker has its place:
    after ``retiring`` is set what was taken is answered, then ``on_retired`` called, which ends the process, for
    threads that wait for a request would take it. ``ready``: a file that says that the start-up of whoever reads here
    is over; ``is_start_up``: there was any, for nobody read another seq here before. ``on_ready`` is given what tells
    how it goes and takes orders, and what says whether it goes."""
    store, meter = connect.opened
    directory = Path(prepared.cache)
    prepared = _brought_again(prepared, Dataset(store, prepared.root), host)
    cache = BlobCache(directory, prepared.address_end, limits_of(directory, cache_bytes_max))
    with mounted(directory, msgspec.json.encode(prepared)), _content(prepared, store) as content:
        work = CacheWork(
            Dataset(store, prepared.root),
            host,
            prepared.seq,
            prepared.word,
            cache,
            content.extents,
            MountedSeqs(directory, lambda data: open_map(data, untried(store))),
            background,
            address_end=prepared.address_end,
            total_bytes=prepared.plain_bytes,
            ready=ready,
            near=_near(prepared, host),
            is_seen_whole=is_start_up and not is_successor,
            on_whole=lambda stamp: _note_whole(prepared, content.image, stamp),
            on_error=on_error,
        )
        server = FuseServer(device, content.handler(work.blob), _KERNEL_TIMEOUT_S, on_error, host.clock)
        work.hold()
        try:
            if is_successor:
                server.take_over()
            on_ready(MountControl(work, meter, restarts, host.clock, prepared.published_at_ns), server)
            work.start()
            # Only now: what has not begun cannot be ended. A word that came before is not lost.
            words = (work, server, retiring, on_retired)
            threading.Thread(target=_retire, args=words, name="retire", daemon=True).start()
            server.serve()
        finally:
            work.close()


def _retire(work: CacheWork, server: FuseServer, retiring: threading.Event, on_retired: Callable[[], None]) -> None:
    """When another worker has its place: what was taken is answered, then this one ends."""
    retiring.wait()
    if not work.ended.is_set():
        work.stop()
        work.let_go(_RETIRE_S)
        work.cache.sync()
        server.retire(_RETIRE_S)
        on_retired()


def _near(prepared: Prepared, host: Host) -> VolumeSource | None:
    volume = prepared.volume
    if volume is None:
        return None
    return open_volume(Path(volume.device), volume.blob_offset, Path(volume.map), host.clock)


def _note_whole(prepared: Prepared, image: ServedImage | None, stamp: hydrated.Stamp) -> None:
    """Every byte of the seq is here: then its image shall be, too, so that nothing need run for the next mount."""
    if prepared.mode is Mode.FUSE:
        return  # no image would say so
    path = prepared.image if image is None else settle(prepared.metadata, image)
    hydrated.write_word(Path(path), prepared.digest, stamp)


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


@dataclass(frozen=True)
class _Content:
    """What a worker serves: where its bytes are, its image where that is served too, and who answers the kernel."""

    extents: Extents
    image: ServedImage | None
    handler: Callable[[Blob], Handler]


@contextlib.contextmanager
def _content(prepared: Prepared, store: Store) -> Iterator[_Content]:
    if prepared.mode is Mode.FUSE:
        with opened_chain(store, prepared.root, prepared.runs, Path(prepared.cache)) as chain:
            extents = EntryExtents(chain)
            # What one who is not root mounts nobody else can enter: all of it is theirs, as after a restore.
            owner = None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
            size, time_ns = prepared.plain_bytes, prepared.published_at_ns
            yield _Content(extents, None, lambda blob: TreeServer(chain, extents, blob, size, time_ns, owner))
    else:
        with opened(prepared, store) as (mapped, image):
            yield _Content(mapped, image, lambda blob: ServedFiles(_files(prepared, image, blob)))


def _files(prepared: Prepared, image: ServedImage | None, blob: Blob) -> list[ServedFile]:
    files = [ServedFile(b"blob", prepared.blob_bytes, blob.read)]
    if image is not None:
        files.append(ServedFile(b"image", image.image_bytes, image.read))
    return files


@contextlib.contextmanager
def open_map(data: bytes, store: Store) -> Iterator[Extents | None]:
    """The extents of what a worker said that it serves; None where no map says them."""
    try:
        prepared = msgspec.json.decode(data, type=Prepared)
    except DECODE_ERRORS as error:
        raise Corrupt("what another mount says of itself does not decode") from error
    if prepared.mode is Mode.FUSE:
        yield None
        return
    with disk_errors(), opened(prepared, store) as (extents, _):
        yield extents
