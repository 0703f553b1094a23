"""Makes a snapshot of a dataset by way of a volume that this node has: the volume is brought to the head, block by
block, says so in its header, is let go where it was attached for this, and is then snapshotted.

Killed anywhere and run again it goes on: until the header says the new seq the volume is of the old one, and what was
written is written again. That this machine attached the volume is noted before it does, so that whoever is killed while
it has it is followed by one who lets it go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synclib.core.manifest import Manifest
from synclib.core.snapshot_tags import COMPLETE, SnapshotTags, store_tag, token_of
from synclib.core.volume_layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    Header,
    decode_header,
    encode_record,
    layout_for,
    record_offset,
)
from synclib.core.volume_plan import GIB
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host, Progress
from synclib.engine.node_volume import attach_volume, detach_volume
from synclib.engine.snapshot_direct import Created, held, locked, renewing, state_directory
from synclib.engine.snapshots import find, newest_confirmed
from synclib.engine.volume_content import BlobBlocks, SeqFiles, header_block, plan_for, put_all, seq_files
from synclib.errors import Conflict, Full, Missing
from synclib.lazy.dataset import Dataset
from synclib.volume.base import Volume, VolumeDriver, VolumeState
from synclib.volume.waiting import snapshot_is_completed, wait_until

_COMPLETED_S = 7200.0
_ATTACHED = "attached"  # names the volume that is to be detached again


def create_from_volume(
    dataset: Dataset,
    host: Host,
    driver: VolumeDriver,
    volume_id: str,
    node: str,
    progress: Progress,
    *,
    is_dry_run: bool = False,
) -> Created:
    """A complete snapshot of the head, of the volume; the newest one that there is where that is of the head already.
    ``node``: this machine, as the driver knows it.

    Conflict for a volume that holds something else, Full for one that is too small.
    """
    with locked(state_directory(dataset, host, driver)) as directory:
        _put_back(driver, host, directory / _ATTACHED, node)
        head = dataset.read_head()
        done = Created(head.manifest.seq, head.manifest.digest)
        found = find(driver, dataset.store.url, dataset.name)
        newest = newest_confirmed(dataset, head.manifest, found)
        done.refused = found.refused
        if newest is not None and newest.manifest.seq == head.manifest.seq:
            done.snapshot_id = newest.id
            return done
        with _device(driver, host, volume_id, node, directory / _ATTACHED) as (volume, path):
            header, before = _standing(dataset, path, done)
            with (
                held(dataset, host, head, before, is_dry_run=is_dry_run) as holder,
                seq_files(dataset, host, head.manifest) as files,
            ):
                _bring(dataset, host, path, volume, files, header, before, done, renewing(holder, progress), is_dry_run)
        # One that was attached for this alone is detached by now: a pool that copies can take no other.
        if not is_dry_run:
            _snapshot(dataset, host, driver, volume_id, done)
        return done


@contextmanager
def _device(driver: VolumeDriver, host: Host, volume_id: str, node: str, note: Path) -> Iterator[tuple[Volume, Path]]:
    """A volume's device here; one that was not attached is detached again, which stands in ``note`` until it is."""
    found = driver.volumes([volume_id])
    if not found:
        raise Missing(f"there is no volume {volume_id}", hint="boxlink snapshot volume ID makes one")
    volume = found[0]
    is_lent = volume.state is VolumeState.AVAILABLE
    if is_lent:
        with disk_errors():
            write_atomic(note, volume_id.encode())
    path = attach_volume(driver, host, volume, node)
    try:
        yield volume, path
    finally:
        if is_lent:
            detach_volume(driver, host, volume_id, node)
            _forget(note)


def _put_back(driver: VolumeDriver, host: Host, note: Path, node: str) -> None:
    """Detach the volume that a killed run had attached here, and wait until it is as it was."""
    with disk_errors():
        try:
            volume_id = note.read_text()
        except FileNotFoundError:
            return
    for volume in driver.volumes([volume_id]):
        if volume.node != node:
            continue
        if volume.state is VolumeState.ATTACHING:
            attach_volume(driver, host, volume, node)
        detach_volume(driver, host, volume_id, node)
    _forget(note)


def _forget(note: Path) -> None:
    with disk_errors():
        note.unlink(missing_ok=True)


def _standing(dataset: Dataset, path: Path, done: Created) -> tuple[Header | None, Manifest | None]:
    """The volume's header, and the manifest of what it holds; None for an empty one, None where that is not known."""
    with disk_errors(), path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), HEADER_BYTES, 0)
    done.why_full = "the volume is empty"
    if not any(data):
        return None, None
    header = decode_header(data)
    record = header.record
    if record is None:
        return header, None
    if record.root != dataset.root:
        raise Conflict(f"the volume is of {record.root}", hint="take another volume")
    try:
        before = dataset.manifest_at(record.seq)
    except Missing:
        done.why_full = f"the store no longer has seq {record.seq}, which the volume holds"
        return header, None
    if before.digest != record.digest:
        done.why_full = f"seq {record.seq} of the volume is not that of the store"
        return header, None
    done.why_full = ""
    done.parent_seq = before.seq
    return header, before


def _bring(
    dataset: Dataset,
    host: Host,
    path: Path,
    volume: Volume,
    files: SeqFiles,
    header: Header | None,
    before: Manifest | None,
    done: Created,
    progress: Progress,
    is_dry_run: bool,
) -> None:
    """Write what the volume lacks; the record last."""
    done.size_gib = volume.size_gib
    if before is not None and before.seq == files.manifest.seq:
        return
    is_new = header is None
    if header is None:
        record = files.record(1)
        header = Header(layout_for(record.image_bytes, record.map_bytes), (None, None))
    need = header.layout.volume_bytes(files.manifest.address_end)
    if need > volume.size_gib * GIB:
        raise Full(f"the volume has {volume.size_gib} GiB and needs {-(-need // GIB)}", hint="enlarge it, or --direct")
    try:
        plan, after = plan_for(dataset, host, files, header, before)
    except Full as error:
        error.hint = "--direct begins with larger ones"
        raise
    done.blocks, done.zero_blocks = len(plan), len(plan.zeros)
    if is_dry_run:
        return
    with disk_errors(), path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()

        def put(index: int, data: bytes | bytearray) -> None:
            _write(descriptor, data, index * BLOCK_BYTES)

        put_all(plan, files, BlobBlocks(dataset.store, dataset.root, files.extents), put, lambda _: False, progress)
        os.fsync(descriptor)
        if is_new:
            _write(descriptor, header_block(Header(header.layout, (None, None))), 0)
            os.fsync(descriptor)
        slot = header.next_slot()
        _write(descriptor, encode_record(after.records[slot]), record_offset(slot))
        os.fsync(descriptor)
    done.put_blocks = len(plan)


def _write(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _snapshot(dataset: Dataset, host: Host, driver: VolumeDriver, volume_id: str, done: Created) -> None:
    store = store_tag(dataset.store.url)
    token = token_of("snapshot of", dataset.store.url, dataset.root, volume_id, done.seq, done.digest)
    tags = SnapshotTags(store, dataset.name, done.seq, done.digest, token).as_dict()
    made = driver.snapshot(volume_id, token=token, tags=tags)
    clock, entropy = host.clock, host.entropy
    wait_until(
        driver.snapshots, [made.id], snapshot_is_completed, clock=clock, entropy=entropy, deadline_s=_COMPLETED_S
    )
    driver.tag(made.id, {COMPLETE: "1"})
    done.snapshot_id, done.parent_id, done.is_new = made.id, made.parent_id, True
