"""Swapping the volume that a node takes a dataset's bytes from: the new one is made and waited for, all that can be is
made ready, then the old one is let go and detached, and the new one attached in its place.

In between the node reads what is not in its cache from the store. What fails while the old one is away brings it back.
Killed anywhere and run again, it goes on: volumes are found by their tags. The old one is deleted later, when it is no
longer needed to go back to (:func:`synclib.engine.node_volume.release_volumes`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from synclib.core.manifest import Manifest
from synclib.core.snapshot_tags import NODE, owner_tags, store_tag
from synclib.engine.host import Host
from synclib.engine.mount import Prepared, VolumeRef
from synclib.engine.node_volume import START, attach_volume, detach_volume, make_volume
from synclib.engine.snapshot_start import volume_ref
from synclib.engine.snapshots import Confirmed, find, newest_confirmed
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.dataset import Dataset
from synclib.volume.base import Volume, VolumeDriver, VolumeState


def swap_volume(
    prepared: Prepared,
    dataset: Dataset,
    host: Host,
    manifest: Manifest,
    driver: VolumeDriver,
    zone: str,
    node: str,
    snapshot_id: str,
    former: VolumeRef | None,
    serve_from: Callable[[VolumeRef | None], None],
) -> Prepared:
    """What is prepared for a mount, with a volume of a snapshot, attached where the former one was.

    ``former``: what stands there; ``serve_from``: let what is mounted take its bytes from a volume, or from none, so
    that nobody has the other open. Missing where the snapshot cannot be used; then nothing was touched.
    """
    chosen = _named(dataset, manifest, driver, snapshot_id)
    made = make_volume(driver, host, chosen.known.snapshot, chosen.known.tags, zone, node)
    others = [volume for volume in _own(driver, dataset, node) if volume.id != made.id]
    maps = Path(prepared.cache) / "volume"
    kept = () if former is None else (Path(former.map),)
    try:
        serve_from(None)
        for other in others:
            detach_volume(driver, host, other.id, node)
        device = attach_volume(driver, host, made, node)
        volume = volume_ref(device, dataset.root, chosen.known, made.id, maps, kept)
    except BoxlinkError:
        _bring_back(driver, host, node, made, former, serve_from)
        raise
    return msgspec.structs.replace(prepared, volume=volume, why_no_volume="")


def _bring_back(
    driver: VolumeDriver,
    host: Host,
    node: str,
    made: Volume,
    former: VolumeRef | None,
    serve_from: Callable[[VolumeRef | None], None],
) -> None:
    """The former volume in its place again; where that fails too the node goes on from the store."""
    with contextlib.suppress(BoxlinkError):
        detach_volume(driver, host, made.id, node)
        found = [] if former is None else driver.volumes([former.volume_id])
        if former is not None and found:
            device = attach_volume(driver, host, found[0], node)
            serve_from(msgspec.structs.replace(former, device=str(device)))


def _named(dataset: Dataset, manifest: Manifest, driver: VolumeDriver, snapshot_id: str) -> Confirmed:
    found = find(driver, dataset.store.url, dataset.name)
    found.snapshots = [known for known in found.snapshots if known.snapshot.id == snapshot_id]
    chosen = newest_confirmed(dataset, manifest, found)
    if chosen is None:
        why = found.refused.get(snapshot_id) or "there is no complete one of this dataset that is called so"
        raise Missing(f"snapshot {snapshot_id} cannot be used: {why}", hint="boxlink snapshot ls")
    return chosen


def _own(driver: VolumeDriver, dataset: Dataset, node: str) -> list[Volume]:
    """The volumes that this node has of a dataset, to start from."""
    tags = {**owner_tags(store_tag(dataset.store.url), dataset.name), NODE: node}
    going = (VolumeState.DELETING, VolumeState.ERROR)
    return [volume for volume in driver.volumes(tags=tags) if START in volume.tags and volume.state not in going]
