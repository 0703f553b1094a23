"""The contract of block volumes and their snapshots, in prose. Both drivers pass tests/conformance/test_volumes.py.

* A snapshot is what a volume held at a moment, in blocks of 512 KiB. Its bytes never change once it is complete.
* Blocks that were never written read as zeros.
* A volume made from a snapshot reads as the snapshot at once; its blocks come on first touch, or all at once where the
  driver can only copy (``Volume.is_lazy``).
* Every call that makes something takes a token: the same call with the same token again makes nothing further and
  answers the same; with other arguments it is a Conflict.
* What is made is tagged in the same call, so that whoever is killed right after finds it again by its tags.
* States move by themselves: :func:`synclib.volume.waiting.wait_until` asks for many at a time.
* Errors are kinds: Missing (no such volume, snapshot), Conflict (in use, wrong state), Full (no capacity, a limit of
  the account), Unavailable (throttled, did not answer), Invalid (refused: rights, arguments), Corrupt.
* Every call ends within a bounded time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

BLOCK_BYTES = 512 << 10
GIB = 1 << 30


class VolumeState(StrEnum):
    CREATING = "creating"
    AVAILABLE = "available"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    BUSY = "busy"  # a detach waits for somebody who has it open
    DELETING = "deleting"
    ERROR = "error"


class SnapshotState(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    ERROR = "error"


@dataclass(frozen=True)
class Volume:
    """``zone``: where it can be attached; ``node``: the instance that has it, ``device``: as what."""

    id: str
    size_gib: int
    state: VolumeState
    zone: str
    snapshot_id: str = ""
    node: str = ""
    device: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    is_lazy: bool = True


@dataclass(frozen=True)
class Snapshot:
    """``size_gib``: of a volume made from it. ``started_at_ns``: wall time."""

    id: str
    size_gib: int
    state: SnapshotState
    started_at_ns: int
    parent_id: str = ""
    volume_id: str = ""
    progress: int = 0  # percent
    tags: Mapping[str, str] = field(default_factory=dict)


class VolumeDriver(Protocol):
    """Safe between threads."""

    name: str  # "ebs" or "local"

    @property
    def why_copies(self) -> str:
        """Why volumes and snapshots are copied whole; empty where they are there at once."""

    def create_volume(
        self, *, size_gib: int, zone: str, token: str, tags: Mapping[str, str], snapshot_id: str = ""
    ) -> Volume:
        """A volume: empty, or what a snapshot holds."""

    def attach(self, volume_id: str, node: str) -> None:
        """Begin to attach it to an instance in its zone; no error where it is attached there."""

    def detach(self, volume_id: str, node: str) -> None:
        """Begin to detach it; never by force. No error where it is not attached."""

    def device(self, volume: Volume) -> Path:
        """Where an attached volume is found on this machine. Unavailable while the kernel has not seen it."""

    def snapshot(self, volume_id: str, *, token: str, tags: Mapping[str, str]) -> Snapshot:
        """What the volume holds now; writes that come afterwards are not in it. It is pending for a while."""

    def volumes(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Volume]:
        """Those of the ids that there are (all, where none is given), with all of the tags. One call, however many."""

    def snapshots(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Snapshot]:
        """As :meth:`volumes`."""

    def tag(self, resource_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a volume or a snapshot."""

    def delete_volume(self, volume_id: str) -> None:
        """No error when there is none. Conflict while it is attached."""

    def delete_snapshot(self, snapshot_id: str) -> None:
        """No error when there is none. Others that were made upon it keep all they hold."""

    def blocks(self) -> SnapshotBlocks:
        """Snapshots block by block, with neither instance nor volume."""


class SnapshotBlocks(Protocol):
    """Reads and writes snapshots block by block (EBS direct APIs, 2019-11-02). Safe between threads."""

    puts_per_s: float  # what the service takes of one snapshot; pace is the driver's business

    def start(self, *, size_gib: int, parent_id: str, token: str, tags: Mapping[str, str]) -> Snapshot:
        """A pending snapshot; with the same token the one that was begun. ``parent_id``: it holds what that holds
        (empty: nothing) but for the blocks that are put."""

    def put(self, snapshot_id: str, index: int, data: bytes | memoryview) -> bytes:
        """Write one whole block of a pending snapshot; its SHA-256. Again is no error."""

    def complete(self, snapshot_id: str, *, changed_count: int, checksum: bytes) -> None:
        """No further block. ``checksum``: SHA-256 over the SHA-256s of the blocks that were put, by index. It is
        completed some time later (:meth:`VolumeDriver.snapshots`), or in error where either does not hold."""

    def written(self, snapshot_id: str) -> Iterator[int]:
        """Indices of the blocks that a completed snapshot holds, rising."""

    def changed(self, first_id: str, second_id: str) -> Iterator[int]:
        """Indices of the blocks in which two completed snapshots of one lineage differ, rising."""

    def get(self, snapshot_id: str, index: int) -> bytes:
        """One block of a completed snapshot, its checksum verified; zeros where it holds none."""
