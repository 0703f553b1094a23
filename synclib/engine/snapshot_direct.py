"""Makes a snapshot of a dataset from the store alone: the blocks that changed since the newest one are put, and nothing
is attached or started.

Killed anywhere and run again it goes on: the token names what is made, so that the service answers with the same
snapshot; what was put is recorded here; and `complete` is tagged last, so that half a snapshot is never taken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest
from synclib.core.snapshot_tags import COMPLETE, MAKING, SnapshotTags, owner_tags, store_tag, token_of
from synclib.core.volume_layout import Header, layout_for
from synclib.core.volume_plan import Plan, size_gib
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.disk.put_record import PutRecord
from synclib.engine.host import Host, Progress
from synclib.engine.lease import Holder, pin
from synclib.engine.snapshots import Confirmed, find, header_of, newest_confirmed
from synclib.engine.volume_content import BlobBlocks, SeqFiles, header_block, plan_for, put_all, seq_files
from synclib.errors import BoxlinkError, Conflict, Corrupt, Full, Missing, Unavailable
from synclib.lazy.dataset import Dataset, HeadState
from synclib.volume.base import Snapshot, SnapshotState, VolumeDriver
from synclib.volume.waiting import POLL_FIRST_S, POLL_MAX_S, snapshot_is_completed, wait_until

# How long a snapshot is waited for: the service says nothing of how long it takes.
_COMPLETED_S = 7200.0
_SEEN_TRIES = 7
_ATTEMPTS = 8
_BEGUN, _PUT = "begun.json", "put"


@dataclass
class Created:
    """What was made. ``is_new``: not where the newest one is of the head's seq already. ``why_full``: why all blocks
    were put; empty where only those that changed. ``refused``: snapshots that are not what they say, and why."""

    seq: int
    digest: str
    snapshot_id: str = ""
    parent_id: str = ""
    parent_seq: int = 0
    is_new: bool = False
    why_full: str = ""
    blocks: int = 0  # of the snapshot that differ from its parent
    zero_blocks: int = 0
    put_blocks: int = 0  # by this run
    size_gib: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    abandoned: str = ""  # one that a former run had begun of another seq, which is deleted


class _Begun(msgspec.Struct, frozen=True):
    """What this machine has begun to make and not finished."""

    attempt: int
    seq: int
    digest: str
    parent_id: str
    token: str = ""


@dataclass(frozen=True)
class _Base:
    """The snapshot that is built upon, and its header."""

    confirmed: Confirmed
    header: Header


def create_direct(
    dataset: Dataset, host: Host, driver: VolumeDriver, progress: Progress, *, is_dry_run: bool = False
) -> Created:
    """A complete snapshot of the head; the newest one that there is where that is of the head already.

    Conflict while another process here makes one of the dataset.
    """
    with locked(state_directory(dataset, host, driver)) as directory:
        head = dataset.read_head()
        done = Created(head.manifest.seq, head.manifest.digest)
        base = _base(dataset, driver, head.manifest, done)
        if base is not None and base.confirmed.manifest.seq == head.manifest.seq:
            done.snapshot_id = base.confirmed.id
            return done
        pinned = held(dataset, host, head, None if base is None else base.confirmed.manifest, is_dry_run=is_dry_run)
        with pinned as holder, seq_files(dataset, host, head.manifest) as files:
            making = _Making(dataset, host, driver, directory, files, base, done)
            making.plan()
            if not is_dry_run:
                making.make(renewing(holder, progress))
        return done


@contextlib.contextmanager
def held(
    dataset: Dataset, host: Host, head: HeadState, before: Manifest | None, *, is_dry_run: bool
) -> Iterator[Holder]:
    """Keep collectors away from what is read: the head's seq, and the one before."""
    holder = pin(dataset, host)
    try:
        if not is_dry_run:
            seqs = [head.manifest.seq, *([before.seq] if before is not None else [])]
            # Whoever may not write goes without.
            with contextlib.suppress(BoxlinkError):
                holder.take(head, *seqs)
        yield holder
    finally:
        holder.end()


def renewing(holder: Holder, progress: Progress) -> Progress:
    def told(what: str, done: int, total: int) -> None:
        holder.renew()
        progress(what, done, total)

    return told


def _base(dataset: Dataset, driver: VolumeDriver, head: Manifest, done: Created) -> _Base | None:
    found = find(driver, dataset.store.url, dataset.name)
    done.why_full = "there is no snapshot before it"
    try:
        confirmed = newest_confirmed(dataset, head, found)
        if confirmed is None:
            return None
        header = header_of(driver, confirmed, dataset.root)
        if isinstance(header, str):
            done.why_full = f"snapshot {confirmed.id} cannot be built upon: {header}"
            found.refused[confirmed.id] = header
            return None
        done.why_full = ""
        return _Base(confirmed, header)
    finally:
        done.refused.update(found.refused)


class _Making:
    """One snapshot, from plan to tag."""

    def __init__(
        self,
        dataset: Dataset,
        host: Host,
        driver: VolumeDriver,
        directory: Path,
        files: SeqFiles,
        base: _Base | None,
        done: Created,
    ) -> None:
        self._dataset, self._host, self._driver, self._directory = dataset, host, driver, directory
        self._files, self._base, self._done = files, base, done
        self._blocks = driver.blocks()
        self._header: Header | None = None
        self._plan: Plan | None = None

    def plan(self) -> None:
        """What is put; says it in what was ``done``."""
        done = self._done
        if self._base is not None:
            try:
                self._plan_upon(self._base.header, self._base.confirmed.manifest)
                done.parent_id, done.parent_seq = self._base.confirmed.id, self._base.confirmed.manifest.seq
            except Full as error:
                done.why_full = f"{error.message} of snapshot {self._base.confirmed.id}"
                self._base = None
        if self._base is None:
            record = self._files.record(1)
            self._plan_upon(Header(layout_for(record.image_bytes, record.map_bytes), (None, None)), None)

    def _plan_upon(self, header: Header, before: Manifest | None) -> None:
        plan, self._header = plan_for(self._dataset, self._host, self._files, header, before)
        self._plan = plan
        self._done.blocks, self._done.zero_blocks = len(plan), len(plan.zeros)
        least_gib = 0 if self._base is None else self._base.confirmed.known.snapshot.size_gib
        self._done.size_gib = size_gib(header.layout, self._files.manifest.address_end, least_gib)

    def make(self, progress: Progress) -> None:
        snapshot = self._begin()
        with PutRecord(self._directory / _PUT) as record:
            if snapshot.state is SnapshotState.PENDING:
                self._put(snapshot, record, progress)
            self._wait(snapshot)
        self._driver.tag(snapshot.id, {COMPLETE: "1"})
        _forget(self._directory)
        self._done.snapshot_id, self._done.is_new = snapshot.id, True

    def _begin(self) -> Snapshot:
        """The pending snapshot: that which a former run began, if it was of the same seq upon the same parent."""
        done = self._done
        begun = _read_begun(self._directory)
        if begun is not None and (begun.seq, begun.digest, begun.parent_id) != (done.seq, done.digest, done.parent_id):
            self._abandon(begun)
            begun = None
        first = 0 if begun is None else begun.attempt
        for attempt in range(first, first + _ATTEMPTS):
            if begun is None or begun.attempt != attempt:
                begun = self._note(attempt)
            snapshot = self._started(begun.token)
            if snapshot is not None:
                return snapshot
        raise Unavailable("every snapshot that was begun has failed", hint="look at the account's limits and its keys")

    def _note(self, attempt: int) -> _Begun:
        """Say what is about to begin, before it does: whoever finds it knows by its token what there may be."""
        done, url = self._done, self._dataset.store.url
        token = token_of("snapshot", url, self._dataset.root, done.parent_id, done.seq, done.digest, attempt)
        begun = _Begun(attempt, done.seq, done.digest, done.parent_id, token)
        _forget(self._directory)
        with disk_errors():
            write_atomic(self._directory / _BEGUN, msgspec.json.encode(begun), 0o600)
        return begun

    def _started(self, token: str) -> Snapshot | None:
        """None where what the token named has failed, or was deleted: the token is spent."""
        done = self._done
        tags = SnapshotTags(
            store_tag(self._dataset.store.url), self._dataset.name, done.seq, done.digest, token
        ).as_dict()
        try:
            begun = self._blocks.start(size_gib=done.size_gib, parent_id=done.parent_id, token=token, tags=tags)
        except Missing:
            return None
        found = self._seen(begun)
        if found is not None and found.state is SnapshotState.ERROR:
            self._driver.delete_snapshot(begun.id)
            return None
        return found

    def _seen(self, begun: Snapshot) -> Snapshot | None:
        """As it is now. One that was just begun may not be seen for some seconds."""
        delay = POLL_FIRST_S
        for _ in range(_SEEN_TRIES):
            found = self._driver.snapshots([begun.id])
            if found:
                return found[0]
            self._host.clock.sleep(delay)
            delay = min(2 * delay, POLL_MAX_S)
        return None

    def _put(self, snapshot: Snapshot, record: PutRecord, progress: Progress) -> None:
        assert self._plan is not None
        assert self._header is not None

        def put(index: int, data: bytes | bytearray) -> None:
            record.note(index, self._blocks.put(snapshot.id, index, memoryview(data)))

        before, _ = record.summary()
        try:
            blob = BlobBlocks(self._dataset.store, self._dataset.root, self._files.extents)
            put_all(self._plan, self._files, blob, put, record.__contains__, progress)
            if 0 not in record:
                put(0, header_block(self._header))
            count, checksum = record.summary()
            self._done.put_blocks = count - before
            self._blocks.complete(snapshot.id, changed_count=count, checksum=checksum)
        except Conflict:
            # Whoever was killed just after `complete`: no block is taken any more. Whether it is right is seen next.
            return

    def _wait(self, snapshot: Snapshot) -> None:
        """Until it is completed. One that has failed goes, and its token with it."""
        clock, entropy = self._host.clock, self._host.entropy
        try:
            wait_until(
                self._driver.snapshots,
                [snapshot.id],
                snapshot_is_completed,
                clock=clock,
                entropy=entropy,
                deadline_s=_COMPLETED_S,
            )
        except Corrupt as error:
            self._driver.delete_snapshot(snapshot.id)
            begun = _read_begun(self._directory)
            self._note(1 if begun is None else begun.attempt + 1)
            raise Corrupt(f"snapshot {snapshot.id} has failed, and is deleted", hint="run it again") from error

    def _abandon(self, begun: _Begun) -> None:
        """What a former run began of another seq is finished by nobody, and paid for."""
        owner = owner_tags(store_tag(self._dataset.store.url), self._dataset.name)
        for snapshot in self._driver.snapshots(tags={**owner, MAKING: begun.token}):
            if snapshot.tags.get(COMPLETE) != "1":
                self._driver.delete_snapshot(snapshot.id)
                self._done.abandoned = snapshot.id
        _forget(self._directory)


def state_directory(dataset: Dataset, host: Host, driver: VolumeDriver) -> Path:
    name = blake3(f"{driver.name}\0{dataset.store.url}\0{dataset.root}".encode()).hexdigest(16)
    return host.state / "snapshot" / name


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Path]:
    with disk_errors():
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("a snapshot of the dataset is being made here already", hint="wait for it") from error
        yield directory
    finally:
        os.close(lock)


def _read_begun(directory: Path) -> _Begun | None:
    try:
        return msgspec.json.decode((directory / _BEGUN).read_bytes(), type=_Begun)
    except (OSError, *DECODE_ERRORS):
        return None


def _forget(directory: Path) -> None:
    """What was put first: what says of which snapshot it was stands until then."""
    with disk_errors():
        (directory / _PUT).unlink(missing_ok=True)
        (directory / _BEGUN).unlink(missing_ok=True)
