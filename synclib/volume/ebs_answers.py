"""EC2's answers about volumes and snapshots as values. What does not have its shape is Unsupported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from synclib.errors import Unsupported
from synclib.volume.base import Snapshot, SnapshotState, Volume, VolumeState

TOKEN_TAG = "boxlink:token"
PARENT_TAG = "boxlink:parent"
_OWN_TAGS = (TOKEN_TAG, PARENT_TAG)

_ATTACHMENTS = {
    "attaching": VolumeState.ATTACHING,
    "attached": VolumeState.IN_USE,
    "detaching": VolumeState.DETACHING,
    "busy": VolumeState.BUSY,
}
_SNAPSHOTS = {
    "pending": SnapshotState.PENDING,
    "completed": SnapshotState.COMPLETED,
    "error": SnapshotState.ERROR,
}
_ID = re.compile(r"(vol|snap)-[0-9a-f]{8,17}")


def volume_from(row: Mapping[str, Any]) -> Volume:
    attachments = [each for each in row.get("Attachments", []) if each.get("State") != "detached"]
    attachment = attachments[0] if attachments else {}
    state = _ATTACHMENTS.get(attachment.get("State", "")) or _volume_state(str(row.get("State")))
    return Volume(
        checked_id(row.get("VolumeId")),
        int(row.get("Size", 0)),
        state,
        str(row.get("AvailabilityZone", "")),
        str(row.get("SnapshotId", "")),
        str(attachment.get("InstanceId", "")),
        str(attachment.get("Device", "")),
        shown_tags(row),
    )


def snapshot_from(row: Mapping[str, Any]) -> Snapshot:
    """Of DescribeSnapshots and CreateSnapshot (State), or of StartSnapshot (Status)."""
    state = str(row.get("State") or row.get("Status"))
    if state not in _SNAPSHOTS:
        raise Unsupported(f"a snapshot is {state!r}", hint="it is in the archive or the recycle bin: restore it there")
    started = row.get("StartTime")
    if not isinstance(started, datetime):
        raise Unsupported("a snapshot without a start time")
    return Snapshot(
        checked_id(row.get("SnapshotId")),
        int(row.get("VolumeSize", 0)),
        _SNAPSHOTS[state],
        int(started.timestamp() * 1000) * 1_000_000,
        str(row.get("ParentSnapshotId") or _tags(row).get(PARENT_TAG, "")),
        _volume_id(row),
        _percent(str(row.get("Progress", "")), state),
        shown_tags(row),
    )


def checked_id(value: object) -> str:
    """An id that may be said in messages and paths."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Unsupported(f"AWS answered with the id {str(value)[:40]!r}")
    return value


def shown_tags(row: Mapping[str, Any]) -> dict[str, str]:
    """Without the driver's own."""
    return {key: value for key, value in _tags(row).items() if key not in _OWN_TAGS}


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag.get("Key")): str(tag.get("Value", "")) for tag in row.get("Tags", [])}


def _volume_state(state: str) -> VolumeState:
    try:
        return VolumeState(state)
    except ValueError as error:
        raise Unsupported(f"a volume is {state!r}") from error


def _volume_id(row: Mapping[str, Any]) -> str:
    """Nothing for snapshots that no volume stands behind: EC2 names one that never was."""
    volume_id = str(row.get("VolumeId", ""))
    return "" if volume_id == "vol-ffffffff" else volume_id


def _percent(text: str, state: str) -> int:
    found = re.fullmatch(r"(\d{1,3})%", text)
    return min(100, int(found[1])) if found else 100 if state == "completed" else 0
