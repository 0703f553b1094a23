"""Snapshots: what they hold, how they come to be completed, and EC2's operations on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.aws.clock import Timeline
from tests.aws.records import ACCOUNT_ID, Field, check_id, matching, moment, page, tag_list, tags_at_birth
from tests.aws.refusal import Refused
from tests.aws.site import Block, Blocks, Site

_OWNERS = ("self", ACCOUNT_ID)


@dataclass
class SnapshotRecord:
    """``base``: the blocks it began with; ``written``: those put since. ``root`` names its lineage: only snapshots of
    one lineage can be compared. ``timeout_s`` is 0 for one that takes no blocks."""

    id: str
    size_gib: int
    status: Timeline
    born: float
    started_ns: int
    root: str
    tags: dict[str, str]
    base: Blocks = field(default_factory=dict)
    written: dict[int, Block] = field(default_factory=dict)
    parent_id: str = ""
    volume_id: str = ""
    description: str = ""
    timeout_s: float = 0.0
    put_at: float = 0.0
    is_open: bool = False

    def blocks(self) -> dict[int, Block]:
        return {**self.base, **self.written}


class SnapshotSource(Protocol):
    """What CreateSnapshot needs of volumes."""

    def contents(self, volume_id: str) -> tuple[int, Blocks, str]:
        """(size in GiB, blocks, lineage); Refused where there is no such volume that can be snapshotted."""


class Snapshots:
    def __init__(self, site: Site) -> None:
        self._site = site
        self.records: dict[str, SnapshotRecord] = {}
        self.volumes: SnapshotSource
        self._made_at: dict[str, float] = {}

    def state(self, record: SnapshotRecord) -> str:
        if record.is_open and self._site.now() > record.put_at + record.timeout_s:
            record.is_open = False
            record.status.set("error")
        return record.status.state

    def visible(self, snapshot_id: str) -> SnapshotRecord | None:
        record = self.records.get(snapshot_id)
        return None if record is None or self._site.is_hidden(record.born) else record

    def found(self, snapshot_id: str) -> SnapshotRecord:
        check_id(snapshot_id, "snap", "SnapshotID")
        record = self.visible(snapshot_id)
        if record is None:
            raise Refused("InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist.")
        return record

    def pending_count(self) -> int:
        return sum(self.state(record) == "pending" for record in self.records.values())

    def add(self, record: SnapshotRecord) -> SnapshotRecord:
        self.records[record.id] = record
        return record

    def create_snapshot(self, params: dict[str, Any]) -> dict[str, Any]:
        volume_id, limits = params["VolumeId"], self._site.limits
        tags = tags_at_birth(params, ["snapshot"]).get("snapshot", {})
        size_gib, blocks, root = self.volumes.contents(volume_id)
        pending = sum(r.volume_id == volume_id and self.state(r) == "pending" for r in self.records.values())
        if self.pending_count() >= limits.pending_snapshots or pending >= limits.pending_snapshots_per_volume:
            raise Refused("ConcurrentSnapshotLimitExceeded", "Maximum allowed in-progress snapshots exceeded.")
        last = self._made_at.get(volume_id, -1e9)
        if self._site.now() < last + limits.seconds_between_snapshots_of_a_volume:
            raise Refused("SnapshotCreationPerVolumeRateExceeded", "The rate of snapshots of this volume is exceeded.")
        self._made_at[volume_id] = self._site.now()
        status = self._site.timeline("pending")
        status.set("pending", then="completed", after_s=self._site.delays.snapshot_s)
        record = self.add(
            SnapshotRecord(
                self._site.ids.new("snap"),
                size_gib,
                status,
                self._site.now(),
                self._site.clock.wall_ns(),
                root,
                tags,
                base=dict(blocks),
                volume_id=volume_id,
                description=params.get("Description", ""),
            )
        )
        return self._shown(record)

    def delete_snapshot(self, params: dict[str, Any]) -> None:
        del self.records[self.found(params["SnapshotId"]).id]

    def describe_snapshots(self, params: dict[str, Any]) -> dict[str, Any]:
        if any(owner not in _OWNERS for owner in params.get("OwnerIds", [])) or "RestorableByUserIds" in params:
            raise Refused("InvalidParameterValue", "this account sees its own snapshots only: OwnerIds is 'self'")
        if not params.get("OwnerIds") and not params.get("SnapshotIds"):
            raise Refused("InvalidParameterCombination", "without OwnerIds everybody's public snapshots are meant")
        ids = params.get("SnapshotIds", [])
        records = (
            [self.found(each) for each in ids] if ids else [r for r in self.records.values() if self.visible(r.id)]
        )
        kept = matching(records, params, self._filters(), lambda record: record.tags)
        shown, more = page(kept, params, bool(ids), self._site.limits.describe_page)
        answer: dict[str, Any] = {"Snapshots": [self._shown(record) for record in shown]}
        return answer | ({"NextToken": more} if more else {})

    def _filters(self) -> dict[str, Field]:
        return {
            "snapshot-id": lambda record: [record.id],
            "status": lambda record: [self.state(record)],
            "volume-id": lambda record: [record.volume_id],
            "volume-size": lambda record: [str(record.size_gib)],
            "description": lambda record: [record.description],
        }

    def _shown(self, record: SnapshotRecord) -> dict[str, Any]:
        state = self.state(record)
        return {
            "SnapshotId": record.id,
            # Snapshots that no volume stands behind name one that never was.
            "VolumeId": record.volume_id or "vol-ffffffff",
            "State": state,
            "StartTime": moment(record.started_ns),
            "Progress": "100%" if state == "completed" else "0%",
            "OwnerId": ACCOUNT_ID,
            "Description": record.description,
            "VolumeSize": record.size_gib,
            "Encrypted": False,
            "StorageTier": "standard",
            "Tags": tag_list(record.tags),
        }
