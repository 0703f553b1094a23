"""What the local driver keeps of a volume or a snapshot beside its image."""

from __future__ import annotations

import msgspec
from blake3 import blake3

from synclib.errors import Conflict, Invalid
from synclib.volume.base import Snapshot, SnapshotState

_SIZE_GIB_MAX = 65536


class VolumeRecord(msgspec.Struct, frozen=True):
    """What is kept of a volume beside its image. ``asked``: a hash of what it was asked for with."""

    id: str
    size_gib: int
    zone: str
    snapshot_id: str
    tags: dict[str, str]
    asked: str
    node: str = ""


class SnapshotRecord(msgspec.Struct, frozen=True):
    """The same of a snapshot."""

    id: str
    size_gib: int
    state: str
    started_at_ns: int
    parent_id: str
    volume_id: str
    tags: dict[str, str]
    asked: str


def snapshot_of(record: SnapshotRecord) -> Snapshot:
    """As the contract has it."""
    state = SnapshotState(record.state)
    return Snapshot(
        record.id,
        record.size_gib,
        state,
        record.started_at_ns,
        record.parent_id,
        record.volume_id,
        100 if state is SnapshotState.COMPLETED else 0,
        record.tags,
    )


def asked(*words: object) -> str:
    return blake3(repr(words).encode()).hexdigest(16)


def id_of(prefix: str, token: str) -> str:
    """A token makes one thing: its name follows from it."""
    if not token:
        raise Invalid("a token is needed")
    return prefix + blake3(token.encode()).hexdigest(9)[:17]


def check_size(size_gib: int) -> None:
    if not 0 < size_gib <= _SIZE_GIB_MAX:
        raise Invalid(f"a volume has 1 to {_SIZE_GIB_MAX} GiB, not {size_gib}")


def check_completed(record: SnapshotRecord) -> None:
    if record.state != SnapshotState.COMPLETED:
        raise Conflict(f"snapshot {record.id} is {record.state}")
