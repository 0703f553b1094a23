"""A node's own volume of a snapshot: made and attached, found again by whoever asks again, and let go when no longer
needed."""

from __future__ import annotations

from pathlib import Path

from synclib.core.snapshot_tags import NODE, SnapshotTags, owner_tags, token_of
from synclib.engine.host import Host
from synclib.errors import Conflict, Unavailable
from synclib.volume.base import Snapshot, Volume, VolumeDriver, VolumeState
from synclib.volume.waiting import volume_is, wait_until

START = "boxlink:start"  # the snapshot that a node's volume was made of, to start from
_ATTEMPTS = 4  # a token is spent when what it made was deleted
_READY_S = 300.0
_SEEN_S, _LOOK_S = 30.0, 0.25


def make_volume(
    driver: VolumeDriver, host: Host, snapshot: Snapshot, tags: SnapshotTags, zone: str, node: str
) -> Volume:
    """A node's volume of a snapshot, available or attached already. The same again makes no other."""
    said = {**owner_tags(tags.store, tags.dataset), NODE: node, START: snapshot.id}
    for attempt in range(_ATTEMPTS):
        made = driver.create_volume(
            size_gib=snapshot.size_gib,
            zone=zone,
            token=token_of("volume", snapshot.id, zone, node, attempt),
            tags=said,
            snapshot_id=snapshot.id,
        )
        if made.state in (VolumeState.AVAILABLE, VolumeState.IN_USE):
            return made
        found = driver.volumes([made.id])
        if found and found[0].state in (VolumeState.DELETING, VolumeState.ERROR):
            continue
        return _until(driver, host, made.id, VolumeState.AVAILABLE, VolumeState.IN_USE)
    raise Unavailable(f"no volume can be made of snapshot {snapshot.id}", hint="look at those that have failed")


def attach_volume(driver: VolumeDriver, host: Host, volume: Volume, node: str) -> Path:
    """Its device here. The kernel may need some seconds to see it."""
    driver.attach(volume.id, node)
    attached = _until(driver, host, volume.id, VolumeState.IN_USE)
    deadline = host.clock.monotonic() + _SEEN_S
    while True:
        try:
            return driver.device(attached)
        except Unavailable:
            if host.clock.monotonic() > deadline:
                raise
            host.clock.sleep(_LOOK_S)


def _until(driver: VolumeDriver, host: Host, volume_id: str, *wanted: VolumeState) -> Volume:
    def is_so(volume: Volume) -> bool:
        return volume.state in wanted or volume_is(wanted[0])(volume)

    return wait_until(driver.volumes, [volume_id], is_so, clock=host.clock, entropy=host.entropy, deadline_s=_READY_S)[
        0
    ]


def release_volumes(driver: VolumeDriver, store: str, dataset: str, node: str, kept: str = "") -> list[str]:
    """Detach and delete the volumes that a node started from, but for ``kept``. The ids of those that are not gone yet:
    one that is being detached, or is open, goes at a later call."""
    left: list[str] = []
    for volume in driver.volumes(tags={**owner_tags(store, dataset), NODE: node}):
        if volume.id == kept or START not in volume.tags:
            continue
        if volume.state is VolumeState.IN_USE:
            driver.detach(volume.id, node)
        try:
            driver.delete_volume(volume.id)
        except Conflict:
            left.append(volume.id)
    return left
