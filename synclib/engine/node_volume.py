"""A node's own volume of a snapshot: made and attached, found again by whoever asks again, and let go when no longer
needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from synclib.core.snapshot_tags import NODE, STORE, SnapshotTags, owner_tags, token_of
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host
from synclib.errors import Conflict, Missing, Unavailable
from synclib.volume.base import Snapshot, Volume, VolumeDriver, VolumeState
from synclib.volume.waiting import volume_is, wait_until

START = "boxlink:start"  # the snapshot that a node's volume was made of, to start from
_SEEN_S, _LOOK_S = 30.0, 0.25
_READY_S = 300.0
_DETACHED_S = 60.0
_GOING = (VolumeState.DELETING, VolumeState.ERROR)


def make_volume(
    driver: VolumeDriver, host: Host, snapshot: Snapshot, tags: SnapshotTags, zone: str, node: str
) -> Volume:
    """A node's volume of a snapshot, available or attached already. The same again makes no other: it is found by its
    tags, or, where those cannot be seen yet, by the token that was kept before it was made."""
    said = {**owner_tags(tags.store, tags.dataset), NODE: node, START: snapshot.id}
    kept = _token_path(host, driver, snapshot.id, node)
    for volume in driver.volumes(tags=said):
        if volume.zone == zone and volume.state not in _GOING:
            return _until(driver, host, volume.id, _READY_S, VolumeState.AVAILABLE, VolumeState.IN_USE)
    for is_last in (False, True):
        try:
            made = driver.create_volume(
                size_gib=snapshot.size_gib,
                zone=zone,
                token=token_of("volume", snapshot.id, zone, node, _nonce(host, kept)),
                tags=said,
                snapshot_id=snapshot.id,
            )
            # One whose token is spent may be answered with, and is never seen.
            with contextlib.suppress(Unavailable):
                return _until(driver, host, made.id, _SEEN_S, VolumeState.AVAILABLE, VolumeState.IN_USE)
            return _until(driver, host, made.id, _READY_S, VolumeState.AVAILABLE, VolumeState.IN_USE)
        except Missing:  # somebody deleted what the token had made
            _forget(kept)
            if is_last:
                raise
    raise AssertionError("the last try returns or raises")


def _token_path(host: Host, driver: VolumeDriver, snapshot_id: str, node: str) -> Path:
    return host.state / "volume-token" / token_of(driver.name, snapshot_id, node)[:32]


def _nonce(host: Host, path: Path) -> str:
    """What tells one making from the next, after that was deleted; on the disk before anything is made."""
    with disk_errors():
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        nonce = host.entropy.token(8).hex()
        write_atomic(path, nonce.encode(), 0o600)
        return nonce


def _forget(path: Path) -> None:
    with disk_errors():
        path.unlink(missing_ok=True)


def attach_volume(driver: VolumeDriver, host: Host, volume: Volume, node: str) -> Path:
    """Its device here. The kernel may need some seconds to see it."""
    driver.attach(volume.id, node)
    attached = _until(driver, host, volume.id, _READY_S, VolumeState.IN_USE)
    deadline = host.clock.monotonic() + _SEEN_S
    while True:
        try:
            return driver.device(attached)
        except Unavailable:
            if host.clock.monotonic() > deadline:
                raise
            host.clock.sleep(_LOOK_S)


def detach_volume(driver: VolumeDriver, host: Host, volume_id: str, node: str) -> None:
    """Detach a volume, never by force, and wait until another can have it. Unavailable where somebody has it open for
    too long."""
    driver.detach(volume_id, node)
    try:
        _until(driver, host, volume_id, _DETACHED_S, VolumeState.AVAILABLE)
    except Unavailable as error:
        raise Unavailable(
            f"volume {volume_id} was not let go: {error.message}", hint="see what has it open: lsof, mount"
        ) from error


def _until(driver: VolumeDriver, host: Host, volume_id: str, deadline_s: float, *wanted: VolumeState) -> Volume:
    def is_so(volume: Volume) -> bool:
        return volume.state in wanted or volume_is(wanted[0])(volume)

    return wait_until(
        driver.volumes, [volume_id], is_so, clock=host.clock, entropy=host.entropy, deadline_s=deadline_s
    )[0]


def release_volumes(driver: VolumeDriver, host: Host, store: str, dataset: str, node: str, kept: str = "") -> list[str]:
    """Detach and delete the volumes that a node started from, but for ``kept``. The ids of those that are not gone yet:
    one that is being detached, or is open, goes at a later call."""
    left: list[str] = []
    for volume in driver.volumes(tags={**owner_tags(store, dataset), NODE: node}):
        if volume.id == kept or START not in volume.tags:
            continue
        _forget(_token_path(host, driver, volume.tags[START], node))
        if not _is_let_go(driver, volume, node):
            left.append(volume.id)
    return left


def release_ended(driver: VolumeDriver, store: str, ended: Callable[[frozenset[str]], Collection[str]]) -> list[str]:
    """Detach and delete the volumes that nodes which have ended started from, of all datasets of a store. The ids of
    those that are not gone yet, as :func:`release_volumes`. ``ended``: which of these nodes have, as the driver knows
    them.

    Only what is tagged as made for that: of this store, by that node, of the snapshot that it is of. One that somebody
    has attached elsewhere is theirs.
    """
    started = [volume for volume in driver.volumes(tags={STORE: store}) if _is_started_from(volume)]
    gone = set(ended(frozenset(volume.tags[NODE] for volume in started)))
    return [
        volume.id
        for volume in started
        if volume.tags[NODE] in gone and not _is_let_go(driver, volume, volume.tags[NODE])
    ]


def _is_started_from(volume: Volume) -> bool:
    owner = volume.tags.get(NODE, "")
    is_made_so = bool(volume.snapshot_id) and volume.tags.get(START) == volume.snapshot_id
    return bool(owner) and is_made_so and volume.node in ("", owner) and volume.state is not VolumeState.DELETING


def _is_let_go(driver: VolumeDriver, volume: Volume, node: str) -> bool:
    try:
        if volume.state is VolumeState.IN_USE:
            driver.detach(volume.id, node)
        driver.delete_volume(volume.id)
    except Conflict:
        return False
    return True
