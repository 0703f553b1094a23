"""Swapping the volume that a node takes a dataset's bytes from: the new one is made and waited for, all that can be is
made ready, then the old one is let go and detached, and the new one attached in its place.

In between the node reads what is not in its cache from the store. What fails while the old one is away brings it back:
the place of the dataset remembers it (engine/lazy_place.py). Killed anywhere and run again, it goes on: volumes are
found by their tags. The old one is deleted later, when it is no
longer needed to go back to (:func:`synclib.engine.node_volume.release_volumes`).
"""

from __future__ import annotations

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
from synclib.errors import Missing
from synclib.lazy.dataset import Dataset
from synclib.volume.base import VolumeDriver, VolumeState

_GOING = (VolumeState.DELETING, VolumeState.ERROR)


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
    let_go: Callable[[], None],
) -> Prepared:
    """What is prepared for a mount, with a volume of a snapshot, attached where the former one was.

    ``former``: what stands there; ``let_go``: let what is mounted take its bytes from no volume, so that nobody has one
    open. Whatever fails or is killed after that leaves it to :func:`former_again`. Missing where the snapshot cannot be
    used; then nothing was touched.
    """
    chosen = _named(dataset, manifest, driver, snapshot_id)
    made = make_volume(driver, host, chosen.known.snapshot, chosen.known.tags, zone, node)
    maps = Path(prepared.cache) / "volume"
    kept = () if former is None else (Path(former.map),)
    let_go()
    _detach_others(driver, host, dataset, node, made.id)
    device = attach_volume(driver, host, made, node)
    volume = volume_ref(device, dataset.root, chosen.known, made.id, maps, kept)
    return msgspec.structs.replace(prepared, volume=volume, why_no_volume="")


def former_again(driver: VolumeDriver, host: Host, dataset: Dataset, node: str, former: VolumeRef) -> VolumeRef | None:
    """The volume that was let go for another, attached again; None where somebody deleted it. What is mounted takes its
    bytes from none meanwhile."""
    found = [volume for volume in driver.volumes([former.volume_id]) if volume.state not in _GOING]
    _detach_others(driver, host, dataset, node, former.volume_id)
    if not found:
        return None
    return msgspec.structs.replace(former, device=str(attach_volume(driver, host, found[0], node)))


def _detach_others(driver: VolumeDriver, host: Host, dataset: Dataset, node: str, kept: str) -> None:
    """The volumes that this node has of a dataset to start from, but for one."""
    tags = {**owner_tags(store_tag(dataset.store.url), dataset.name), NODE: node}
    for volume in driver.volumes(tags=tags):
        if START in volume.tags and volume.state not in _GOING and volume.id != kept:
            detach_volume(driver, host, volume.id, node)


def _named(dataset: Dataset, manifest: Manifest, driver: VolumeDriver, snapshot_id: str) -> Confirmed:
    found = find(driver, dataset.store.url, dataset.name)
    found.snapshots = [known for known in found.snapshots if known.snapshot.id == snapshot_id]
    chosen = newest_confirmed(dataset, manifest, found)
    if chosen is None:
        why = found.refused.get(snapshot_id) or "there is no complete one of this dataset that is called so"
        raise Missing(f"snapshot {snapshot_id} cannot be used: {why}", hint="boxlink snapshot ls")
    return chosen
