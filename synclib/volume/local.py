"""Volumes and snapshots as image files on this machine: what the service does, where there is none.

A volume made from a snapshot is a clone, there at once, where the file system of the pool can do that; else a copy.
Attaching needs root: it is a loop device. A volume has no file system here (docs/format/volume.md), so nothing need be
frozen for a snapshot: what was written is flushed, and the clone is of one moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from synclib.clock import Clock
from synclib.core.frame import DECODE_ERRORS
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mounted_on, unmount
from synclib.errors import Conflict, Invalid, Missing, Unavailable, Unsupported
from synclib.volume import first_touch
from synclib.volume.base import GIB, Snapshot, SnapshotBlocks, SnapshotState, Volume, VolumeState
from synclib.volume.local_blocks import LocalBlocks
from synclib.volume.local_pool import Pool, loop_devices, run
from synclib.volume.local_records import (
    SnapshotRecord,
    VolumeRecord,
    asked,
    check_completed,
    check_size,
    id_of,
    snapshot_of,
)

_KINDS = {"vol-": "volumes", "snap-": "snapshots"}


Record = TypeVar("Record", VolumeRecord, SnapshotRecord)


class LocalDriver:
    """Volumes in a pool. Safe between threads and processes; all that is made is made at once."""

    name = "local"

    def __init__(self, pool: Path, clock: Clock) -> None:
        self.pool = Pool(pool)
        self._clock = clock

    @property
    def why_copies(self) -> str:
        return self.pool.why_copies

    def create_volume(
        self, *, size_gib: int, zone: str, token: str, tags: Mapping[str, str], snapshot_id: str = ""
    ) -> Volume:
        record = VolumeRecord(
            id_of("vol-", token),
            size_gib,
            zone,
            snapshot_id,
            dict(tags),
            asked(size_gib, zone, snapshot_id, sorted(tags.items())),
        )
        with self.pool.locked():
            found = self._made(record, VolumeRecord)
            if found is None:
                source = None
                if snapshot_id:
                    held = self.snapshot_record(snapshot_id)
                    check_completed(held)
                    if size_gib < held.size_gib:
                        raise Invalid(f"snapshot {snapshot_id} needs a volume of {held.size_gib} GiB")
                    source = self.image(snapshot_id)
                check_size(size_gib)
                self.pool.make(self.image(record.id), size_gib * GIB, source)
                self.write(record)
                found = record
        return self._volume(found)

    def attach(self, volume_id: str, node: str) -> None:
        if os.geteuid() != 0:
            raise Unsupported("only root can attach a volume", hint="run it as root")
        with self.pool.locked():
            record = self._volume_record(volume_id)
            if record.node not in ("", node) and self._devices(volume_id):
                raise Conflict(f"volume {volume_id} is attached to {record.node}", hint="detach it there first")
            self.write(msgspec.structs.replace(record, node=node))
            if not self._devices(volume_id):
                self._add_device(record)

    def detach(self, volume_id: str, node: str) -> None:
        with self.pool.locked():
            record = self._volume_record(volume_id)
            if record.node != node:
                return
            for device in self._devices(volume_id):
                _flush(device)
                run("losetup", "-d", str(device))
            if not self._devices(volume_id):
                self._end_slow(volume_id)
                self.write(msgspec.structs.replace(record, node=""))

    def device(self, volume: Volume) -> Path:
        found = self._devices(volume.id)
        if not found:
            raise Unavailable(f"volume {volume.id} has no device here", hint="attach it")
        return found[0]

    def snapshot(self, volume_id: str, *, token: str, tags: Mapping[str, str]) -> Snapshot:
        with self.pool.locked():
            volume = self._volume_record(volume_id)
            record = SnapshotRecord(
                id_of("snap-", token),
                volume.size_gib,
                SnapshotState.COMPLETED,
                self._clock.wall_ns(),
                volume.snapshot_id,
                volume_id,
                dict(tags),
                asked(volume_id, sorted(tags.items())),
            )
            found = self._made(record, SnapshotRecord)
            if found is None:
                devices = self._devices(volume_id)
                if devices and not self.pool.is_lazy:
                    raise Conflict(
                        f"volume {volume_id} is attached, and cannot be copied in one moment: {self.pool.why_copies}",
                        hint="detach it first",
                    )
                for device in devices:
                    _flush(device)
                self.pool.make(self.image(record.id), volume.size_gib * GIB, self.image(volume_id))
                self.write(record)
                found = record
        return snapshot_of(found)

    def volumes(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Volume]:
        return [self._volume(record) for record in self._records("volumes", VolumeRecord, ids, tags)]

    def snapshots(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Snapshot]:
        return [snapshot_of(record) for record in self._records("snapshots", SnapshotRecord, ids, tags)]

    def tag(self, resource_id: str, tags: Mapping[str, str]) -> None:
        with self.pool.locked():
            record: VolumeRecord | SnapshotRecord
            if resource_id.startswith("vol-"):
                record = self._volume_record(resource_id)
            else:
                record = self.snapshot_record(resource_id)
            self.write(msgspec.structs.replace(record, tags={**record.tags, **tags}))

    def delete_volume(self, volume_id: str) -> None:
        with self.pool.locked():
            if self._devices(volume_id):
                raise Conflict(f"volume {volume_id} is attached", hint="detach it first")
            self._end_slow(volume_id)
            self._remove(volume_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        with self.pool.locked():
            self._remove(snapshot_id)

    def blocks(self) -> SnapshotBlocks:
        return LocalBlocks(self, self._clock)

    # Devices. Where the pool says so, a volume of a snapshot is slow at first touch, and then can only be read.

    def _devices(self, volume_id: str) -> list[Path]:
        return [*loop_devices(self.image(volume_id)), *loop_devices(self._slow(volume_id) / first_touch.NAME)]

    def _slow(self, volume_id: str) -> Path:
        return self.pool.files / "slow" / volume_id

    def _add_device(self, record: VolumeRecord) -> None:
        seconds = self.pool.first_touch_s()
        if not (seconds and record.snapshot_id):
            run("losetup", "--find", str(self.image(record.id)))
            return
        self._end_slow(record.id)
        with disk_errors():
            self._slow(record.id).mkdir(parents=True)
        slow = first_touch.start(self.image(record.id), self._slow(record.id), seconds)
        run("losetup", "--find", "--read-only", str(slow))

    def _end_slow(self, volume_id: str) -> None:
        """Its process ends with its mount."""
        place = self._slow(volume_id)
        with disk_errors():
            while mounted_on(os.fsencode(os.path.realpath(place))):
                unmount(os.fsencode(place), MNT_DETACH | UMOUNT_NOFOLLOW)
            if place.exists():
                place.rmdir()

    # Files: an image, and beside it what is known of it, written last and removed first.

    def image(self, resource_id: str) -> Path:
        """Missing for what can be no name of ours."""
        for prefix, directory in _KINDS.items():
            tail = resource_id.removeprefix(prefix)
            if tail != resource_id and tail.isalnum() and tail.isascii():
                return self.pool.files / directory / f"{resource_id}.img"
        raise Missing(f"there is no {resource_id[:80]!r}", hint="boxlink snapshot ls tells what there is")

    def write(self, record: VolumeRecord | SnapshotRecord) -> None:
        with disk_errors():
            write_atomic(self.image(record.id).with_suffix(".json"), msgspec.json.encode(record))

    def snapshot_record(self, snapshot_id: str) -> SnapshotRecord:
        return self._record(snapshot_id, SnapshotRecord)

    def _volume_record(self, volume_id: str) -> VolumeRecord:
        return self._record(volume_id, VolumeRecord)

    def _record(self, resource_id: str, kind: type[Record]) -> Record:
        found = self._read(self.image(resource_id).with_suffix(".json"), kind)
        if found is None:
            raise Missing(f"there is no {resource_id}", hint="boxlink snapshot ls tells what there is")
        return found

    def _read(self, path: Path, kind: type[Record]) -> Record | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (FileNotFoundError, *DECODE_ERRORS):
            return None

    def _records(
        self, directory: str, kind: type[Record], ids: Sequence[str], tags: Mapping[str, str] | None
    ) -> list[Record]:
        wanted = set((tags or {}).items())
        found = (self._read(path, kind) for path in sorted((self.pool.files / directory).glob("*.json")))
        return [
            record
            for record in found
            if record is not None and (not ids or record.id in ids) and wanted <= record.tags.items()
        ]

    def _made(self, record: Record, kind: type[Record]) -> Record | None:
        """What the token has made before. Conflict where that was asked for with other words."""
        found = self._read(self.image(record.id).with_suffix(".json"), kind)
        if found is not None and found.asked != record.asked:
            raise Conflict(f"{record.id} was made with the same token and other arguments")
        return found

    def made_snapshot(self, record: SnapshotRecord) -> SnapshotRecord | None:
        return self._made(record, SnapshotRecord)

    def _remove(self, resource_id: str) -> None:
        with disk_errors(), contextlib.suppress(Missing):
            image = self.image(resource_id)
            for path in (image.with_suffix(".json"), image.with_suffix(".put"), image):
                path.unlink(missing_ok=True)

    def _volume(self, record: VolumeRecord) -> Volume:
        devices = self._devices(record.id)
        state = VolumeState.IN_USE if devices else VolumeState.AVAILABLE
        return Volume(
            record.id,
            record.size_gib,
            state,
            record.zone,
            record.snapshot_id,
            record.node if devices else "",
            str(devices[0]) if devices else "",
            record.tags,
            self.pool.is_lazy,
        )


def _flush(device: Path) -> None:
    """What was written to a device goes to its image."""
    with disk_errors():
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
