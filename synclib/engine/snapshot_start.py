"""Starts a lazy mount from a snapshot: a volume is made of the newest one that fits, and bytes come from it first.

Nothing that the volume says is believed: what is mounted is the store's metadata of the seq that is wanted, and each
piece of the volume is hashed against that. So a wrong volume costs time, never bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.core.manifest import Manifest
from synclib.core.snapshot_tags import parse_tags, store_tag
from synclib.core.volume_layout import HEADER_BYTES, Header
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host
from synclib.engine.mount import Prepared, VolumeRef
from synclib.engine.node_volume import attach_volume, make_volume, release_volumes
from synclib.engine.snapshots import Confirmed, Known, check_header, find, newest_confirmed
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable, Unsupported
from synclib.lazy.dataset import Dataset
from synclib.volume.base import VolumeDriver

_TRIED_MAX = 3
_MAP_BYTES_MAX = 4 << 30
_READ_BYTES = 1 << 20
_READ_S = 60.0


def with_volume(
    prepared: Prepared, dataset: Dataset, host: Host, manifest: Manifest, driver: VolumeDriver, zone: str, node: str
) -> Prepared:
    """What is prepared for a mount, with a volume of the newest snapshot that fits; where there is none, with why not.
    The node's other volumes of the dataset go."""
    try:
        found = find(driver, dataset.store.url, dataset.name)
        for _ in range(_TRIED_MAX):
            chosen = newest_confirmed(dataset, manifest, found)
            if chosen is None:
                break
            try:
                volume = _volume(dataset, host, driver, chosen, Path(prepared.cache), zone, node)
            except (Corrupt, Missing, Unsupported) as error:
                found.refused[chosen.id] = error.message
                found.snapshots = [known for known in found.snapshots if known.snapshot.id != chosen.id]
                continue
            _release(driver, host, dataset, node, volume.volume_id)
            return msgspec.structs.replace(prepared, volume=volume)
        refused = "".join(f"; {name} is refused: {why}" for name, why in sorted(found.refused.items())[:_TRIED_MAX])
        why = f"there is no complete snapshot of it{refused}"
    except BoxlinkError as error:
        why = error.message
    _release(driver, host, dataset, node, "")
    return msgspec.structs.replace(prepared, why_no_volume=why)


def _release(driver: VolumeDriver, host: Host, dataset: Dataset, node: str, kept: str) -> None:
    """What cannot go now goes the next time."""
    with contextlib.suppress(BoxlinkError):
        release_volumes(driver, host, store_tag(dataset.store.url), dataset.name, node, kept)


def _volume(
    dataset: Dataset, host: Host, driver: VolumeDriver, chosen: Confirmed, directory: Path, zone: str, node: str
) -> VolumeRef:
    """A volume of a snapshot, attached here. Corrupt where it is not what the snapshot is tagged as."""
    made = make_volume(driver, host, chosen.known.snapshot, chosen.known.tags, zone, node)
    device = attach_volume(driver, host, made, node)
    return volume_ref(device, dataset.root, chosen.known, made.id, directory / "volume")


def volume_ref(
    device: Path, root: str, known: Known, volume_id: str, maps: Path, kept: Collection[Path] = ()
) -> VolumeRef:
    """An attached volume of a snapshot, with a copy of its map in ``maps``, where all others but ``kept`` go. Corrupt
    where it is not what the snapshot is tagged as."""

    snapshot = known.snapshot

    def read() -> VolumeRef:
        with disk_errors(), device.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            data = os.pread(descriptor, HEADER_BYTES, 0)
            header = check_header(data, root, known.tags.seq, known.tags.digest)
            path = _copied_map(descriptor, header, maps, snapshot.id, kept)
        return VolumeRef(snapshot.id, volume_id, known.tags.seq, str(device), header.layout.blob, str(path))

    return _in_time(read)


def _in_time(read: Callable[[], VolumeRef]) -> VolumeRef:
    """A disk that stands still keeps a thread in the kernel, which nobody waits for then. Unavailable."""
    future: Future[VolumeRef] = Future()

    def run() -> None:
        try:
            future.set_result(read())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="volume", daemon=True).start()
    try:
        return future.result(_READ_S)
    except TimeoutError as error:
        raise Unavailable(f"the volume's metadata did not come within {_READ_S:.0f} s") from error


def _copied_map(descriptor: int, header: Header, directory: Path, snapshot_id: str, kept: Collection[Path]) -> Path:
    """The slot's map as a file here; Corrupt where it is not what the record says. Others go, but ``kept``."""
    record, slot = header.record, header.newest
    assert record is not None
    assert slot is not None
    if record.map_bytes > _MAP_BYTES_MAX:
        raise Corrupt("the map of the volume is impossibly long")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{blake3(snapshot_id.encode()).hexdigest(16)}.map"
    for other in directory.iterdir():
        if other != path and other not in kept:
            other.unlink(missing_ok=True)
    temporary = path.with_suffix(".part")
    digest = blake3()
    with temporary.open("wb") as file:
        position, left = header.layout.slot(slot) + record.map_offset, record.map_bytes
        while left:
            piece = os.pread(descriptor, min(_READ_BYTES, left), position)
            if not piece:
                raise Corrupt("the volume is shorter than its header says")
            digest.update(piece)
            file.write(piece)
            position, left = position + len(piece), left - len(piece)
    if digest.digest() != record.map_hash:
        raise Corrupt("the map of the volume does not have its hash")
    temporary.rename(path)
    return path


def attached_again(prepared: Prepared, host: Host, driver: VolumeDriver, node: str) -> Prepared:
    """What stood here before, perhaps before a start of the machine: its volume attached again, or without it."""
    volume = prepared.volume
    if volume is None:
        return prepared
    try:
        found = driver.volumes([volume.volume_id])
        if found:
            device = attach_volume(driver, host, found[0], node)
            if os.path.exists(volume.map):
                again = msgspec.structs.replace(volume, device=str(device))
            else:
                again = _with_map(prepared, volume, driver, device)
            return msgspec.structs.replace(prepared, volume=again)
        why = f"volume {volume.volume_id} is gone"
    except BoxlinkError as error:
        why = error.message
    return msgspec.structs.replace(prepared, volume=None, why_no_volume=why)


def _with_map(prepared: Prepared, volume: VolumeRef, driver: VolumeDriver, device: Path) -> VolumeRef:
    """Where the cache was deleted: the map is copied from the volume again."""
    snapshots = driver.snapshots([volume.snapshot_id])
    if not snapshots:
        raise Missing(f"the map of volume {volume.volume_id} is gone, and so is its snapshot")
    known = Known(snapshots[0], parse_tags(snapshots[0].tags))
    return volume_ref(device, prepared.root, known, volume.volume_id, Path(volume.map).parent)
