"""Snapshots of the local driver, block by block: as strict about order, counts and checksums as the service."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from synclib.clock import Clock
from synclib.disk.faults import disk_errors
from synclib.disk.put_record import PutRecord
from synclib.errors import Conflict, Invalid
from synclib.volume.base import BLOCK_BYTES, GIB, Snapshot, SnapshotState
from synclib.volume.local_pool import data_ranges
from synclib.volume.local_records import SnapshotRecord, asked, check_completed, check_size, id_of, snapshot_of

if TYPE_CHECKING:
    from synclib.volume.local import LocalDriver


class LocalBlocks:
    """Safe between threads."""

    puts_per_s = math.inf

    def __init__(self, driver: LocalDriver, clock: Clock) -> None:
        self._driver, self._clock = driver, clock

    def start(self, *, size_gib: int, parent_id: str, token: str, tags: Mapping[str, str]) -> Snapshot:
        check_size(size_gib)
        record = SnapshotRecord(
            id_of("snap-", token),
            size_gib,
            SnapshotState.PENDING,
            self._clock.wall_ns(),
            parent_id,
            "",
            dict(tags),
            asked(size_gib, parent_id, sorted(tags.items())),
        )
        driver = self._driver
        with driver.pool.locked():
            found = driver.made_snapshot(record)
            if found is None:
                source = None
                if parent_id:
                    parent = driver.snapshot_record(parent_id)
                    check_completed(parent)
                    if size_gib < parent.size_gib:
                        raise Invalid(f"its parent {parent_id} has {parent.size_gib} GiB: it cannot be smaller")
                    source = driver.image(parent_id)
                image = driver.image(record.id)
                image.with_suffix(".put").unlink(missing_ok=True)
                driver.pool.make(image, size_gib * GIB, source)
                driver.write(record)
                found = record
        return snapshot_of(found)

    def put(self, snapshot_id: str, index: int, data: bytes | memoryview) -> bytes:
        record = self._in_state(snapshot_id, SnapshotState.PENDING)
        _check_index(record, index)
        if len(data) != BLOCK_BYTES:
            raise Invalid(f"a block has {BLOCK_BYTES} bytes, not {len(data)}")
        digest = hashlib.sha256(data).digest()
        image = self._driver.image(snapshot_id)
        with disk_errors(), image.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, index * BLOCK_BYTES)
        with PutRecord(image.with_suffix(".put")) as put:
            put.note(index, digest)
        return digest

    def complete(self, snapshot_id: str, *, changed_count: int, checksum: bytes) -> None:
        with self._driver.pool.locked():
            record = self._in_state(snapshot_id, SnapshotState.PENDING)
            image = self._driver.image(snapshot_id)
            with PutRecord(image.with_suffix(".put")) as put:
                is_right = put.summary() == (changed_count, checksum)
            with disk_errors(), image.open("r+b", buffering=0) as file:
                os.fsync(file.fileno())
            state = SnapshotState.COMPLETED if is_right else SnapshotState.ERROR
            self._driver.write(msgspec.structs.replace(record, state=state))

    def written(self, snapshot_id: str) -> Iterator[int]:
        record = self._in_state(snapshot_id, SnapshotState.COMPLETED)
        last = -1
        with disk_errors(), self._driver.image(snapshot_id).open("rb", buffering=0) as file:
            for start, stop in data_ranges(file.fileno(), record.size_gib * GIB):
                for index in range(max(start // BLOCK_BYTES, last + 1), -(-stop // BLOCK_BYTES)):
                    yield index
                    last = index

    def changed(self, first_id: str, second_id: str) -> Iterator[int]:
        if first_id != second_id and first_id not in self._lineage(second_id):
            raise Invalid(f"snapshot {second_id} was not made upon {first_id}")
        for index in sorted({*self.written(first_id), *self.written(second_id)}):
            if self.get(first_id, index) != self.get(second_id, index):
                yield index

    def _lineage(self, snapshot_id: str) -> list[str]:
        found: list[str] = []
        parent = self._driver.snapshot_record(snapshot_id).parent_id
        while parent and parent not in found:
            found.append(parent)
            known = self._driver.snapshots([parent])
            parent = known[0].parent_id if known else ""
        return found

    def get(self, snapshot_id: str, index: int) -> bytes:
        record = self._in_state(snapshot_id, SnapshotState.COMPLETED)
        _check_index(record, index)
        with disk_errors(), self._driver.image(snapshot_id).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), BLOCK_BYTES, index * BLOCK_BYTES).ljust(BLOCK_BYTES, b"\0")

    def _in_state(self, snapshot_id: str, state: SnapshotState) -> SnapshotRecord:
        record = self._driver.snapshot_record(snapshot_id)
        if record.state != state:
            raise Conflict(f"snapshot {snapshot_id} is {record.state}, not {state}")
        return record


def _check_index(record: SnapshotRecord, index: int) -> None:
    if not 0 <= index < record.size_gib * GIB // BLOCK_BYTES:
        raise Invalid(f"snapshot {record.id} has no block {index}")
