"""EC2's volumes and their attachments."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.aws.clock import Timeline
from tests.aws.records import Field, check_id, matching, moment, page, tag_list, tags_at_birth
from tests.aws.refusal import Refused
from tests.aws.site import Block, Blocks, Site
from tests.aws.snapshots import Snapshots

_MISMATCH = Refused("IdempotentParameterMismatch", "The client token was used with other parameters.")
_DEVICE = re.compile(r"/dev/(sd[a-z][0-9]*|xvd[a-z]{1,2})")
_SIZE_GIB_MAX = {"gp2": 16_384, "gp3": 65_536, "io1": 16_384, "io2": 65_536, "standard": 1024}


@dataclass
class Attachment:
    instance_id: str
    device: str
    status: Timeline
    attached_ns: int
    is_deleted_with_instance: bool = False
    has_device: bool = False


@dataclass
class VolumeRecord:
    id: str
    size_gib: int
    zone: str
    kind: str
    status: Timeline
    born: float
    created_ns: int
    root: str
    snapshot_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    attachment: Attachment | None = None


class AttachTarget(Protocol):
    """What AttachVolume needs of instances."""

    def target_zone(self, instance_id: str) -> str:
        """The zone of an instance that takes volumes; Refused otherwise."""


class Devices:
    """What attached volumes are seen as: here nothing, with loop_devices.py block devices of this machine."""

    def appear(self, volume: VolumeRecord) -> None:
        """It is attached from now on."""

    def vanish(self, volume: VolumeRecord) -> None:
        """It is attached no more; what was written is the volume's."""

    def collect(self, volume: VolumeRecord) -> None:
        """Bring what was written into the volume's blocks."""

    def is_busy(self, volume: VolumeRecord) -> bool:
        """Whether somebody has it mounted."""
        return False


class Volumes:
    def __init__(self, site: Site, snapshots: Snapshots) -> None:
        self._site = site
        self._snapshots = snapshots
        self.instances: AttachTarget
        self.devices = Devices()
        self.records: dict[str, VolumeRecord] = {}

    def settle(self) -> None:
        """Let what was under way come to its end: detached attachments go, busy ones that were let go too."""
        for record in list(self.records.values()):
            attachment = record.attachment
            if attachment and attachment.status.state == "attached" and not attachment.has_device:
                attachment.has_device = True
                self.devices.appear(record)
            if attachment and attachment.status.state == "busy":
                self.let_go(record)
            if attachment and attachment.status.state == "detached":
                record.attachment = None
                record.status.set("available")
            if record.status.state == "deleted":
                del self.records[record.id]

    def found(self, volume_id: str) -> VolumeRecord:
        check_id(volume_id, "vol", "VolumeID")
        record = self.records.get(volume_id)
        if record is None or self._site.is_hidden(record.born):
            raise Refused("InvalidVolume.NotFound", f"The volume '{volume_id}' does not exist.")
        return record

    def contents(self, volume_id: str) -> tuple[int, Blocks, str]:
        record = self.found(volume_id)
        if record.status.state not in ("available", "in-use"):
            raise Refused("IncorrectState", f"Volume '{volume_id}' is {record.status.state}.")
        self.devices.collect(record)
        return record.size_gib, record.blocks, record.root

    def create_volume(self, params: dict[str, Any]) -> dict[str, Any]:
        self._check_new(params)
        tags = tags_at_birth(params, ["volume"]).get("volume", {})
        token = params.get("ClientToken", "")
        known = self._site.tokens.begin("CreateVolume", token, params, _MISMATCH)
        if known:
            if known not in self.records:
                raise Refused("InvalidVolume.NotFound", f"The volume '{known}' of this client token is deleted.")
            return self._shown(self.records[known])
        zone = params["AvailabilityZone"]
        if zone in self._site.script.exhausted:
            raise Refused("InsufficientVolumeCapacity", f"There is not enough capacity in {zone}.", status=500)
        if len(self.records) >= self._site.limits.volumes:
            raise Refused("VolumeLimitExceeded", "You have exceeded your maximum number of volumes.")
        record = self.make(zone, params, tags)
        self._site.tokens.end("CreateVolume", token, record.id)
        return self._shown(record)

    def _check_new(self, params: dict[str, Any]) -> None:
        if params.get("AvailabilityZone") not in self._site.zones:
            raise Refused("InvalidZone.NotFound", f"The zone '{params.get('AvailabilityZone')}' does not exist.")
        self.check_disk(params)
        rate = params.get("VolumeInitializationRate")
        if rate is not None and ("SnapshotId" not in params or not 100 <= rate <= 300):
            raise Refused("InvalidParameterValue", "VolumeInitializationRate is 100 to 300, and needs a snapshot")

    def check_disk(self, params: dict[str, Any]) -> None:
        """What CreateVolume and a block device mapping have in common."""
        kind, snapshot_id = params.get("VolumeType", "gp2"), params.get("SnapshotId", "")
        if kind not in _SIZE_GIB_MAX:
            raise Refused("UnknownVolumeType", f"Unsupported volume type '{kind}'")
        least = 1
        if snapshot_id:
            snapshot = self._snapshots.found(snapshot_id)
            if self._snapshots.state(snapshot) != "completed":
                raise Refused("IncorrectState", f"Snapshot '{snapshot_id}' is not completed.")
            least = snapshot.size_gib
        elif "Size" not in params:
            raise Refused("MissingParameter", "The request must contain the parameter size or snapshotId")
        if not least <= params.get("Size", least) <= _SIZE_GIB_MAX[kind]:
            raise Refused(
                "InvalidParameterValue", f"Volume of {params['Size']}GiB is smaller than the snapshot, or too big"
            )
        for name, kinds, low, high in (("Iops", ("gp3",), 3000, 80_000), ("Throughput", ("gp3",), 125, 2000)):
            if name in params and (kind not in kinds or not low <= params[name] <= high):
                raise Refused("InvalidParameterValue", f"{name} is not supported so for {kind}")

    def make(self, zone: str, params: dict[str, Any], tags: dict[str, str]) -> VolumeRecord:
        volume_id, snapshot_id = self._site.ids.new("vol"), params.get("SnapshotId", "")
        source = self._snapshots.records[snapshot_id] if snapshot_id else None
        record = VolumeRecord(
            volume_id,
            params.get("Size") or (source.size_gib if source else 0),
            zone,
            params.get("VolumeType", "gp2"),
            self._site.timeline("creating"),
            self._site.now(),
            self._site.clock.wall_ns(),
            source.root if source else volume_id,
            snapshot_id,
            tags,
            source.blocks() if source else {},
        )
        record.status.set("creating", then="available", after_s=self._site.delays.volume_create_s)
        self.records[volume_id] = record
        return record

    def attach_volume(self, params: dict[str, Any]) -> dict[str, Any]:
        record, instance_id, device = self.found(params["VolumeId"]), params["InstanceId"], params["Device"]
        zone = self.instances.target_zone(instance_id)
        if record.attachment:
            raise Refused("VolumeInUse", f"{record.id} is already attached to an instance")
        if record.status.state != "available":
            raise Refused("IncorrectState", f"{record.id} is not 'available'.")
        if zone != record.zone:
            raise Refused("InvalidVolume.ZoneMismatch", f"The volume '{record.id}' is not in the zone {zone}")
        used = [other.attachment.device for other in self.attached(instance_id) if other.attachment]
        if not _DEVICE.fullmatch(device) or device in used:
            raise Refused("InvalidParameterValue", f"Invalid value '{device}' for unixDevice. It is already in use.")
        if len(used) >= self._site.limits.attachments_per_instance:
            raise Refused("AttachmentLimitExceeded", f"{instance_id} has as many volumes as it can have")
        self.bind(record, instance_id, device, is_deleted_with_instance=False)
        return self._attachment(record)

    def bind(self, record: VolumeRecord, instance_id: str, device: str, *, is_deleted_with_instance: bool) -> None:
        status = self._site.timeline("attaching")
        status.set("attaching", then="attached", after_s=self._site.delays.attach_s)
        record.attachment = Attachment(
            instance_id, device, status, self._site.clock.wall_ns(), is_deleted_with_instance
        )
        record.status.set("in-use")

    def detach_volume(self, params: dict[str, Any]) -> dict[str, Any]:
        record = self.found(params["VolumeId"])
        attachment = record.attachment
        if attachment is None:
            raise Refused("IncorrectState", f"Volume '{record.id}' is in the 'available' state.")
        for name, have in (("InstanceId", attachment.instance_id), ("Device", attachment.device)):
            if params.get(name, have) != have:
                raise Refused("InvalidAttachment.NotFound", f"{record.id} is not attached so ({name})")
        if attachment.status.state != "attached":
            raise Refused("IncorrectState", f"Volume '{record.id}' is {attachment.status.state}.")
        self.let_go(record)
        return self._attachment(record)

    def let_go(self, record: VolumeRecord, *, is_gone: bool = False) -> None:
        """``is_gone``: its instance has ended, so that nobody can be busy with it."""
        assert record.attachment is not None
        is_busy = record.id in self._site.script.busy_volumes or self.devices.is_busy(record)
        if is_busy and not is_gone:
            record.attachment.status.set("busy")
        else:
            self.devices.vanish(record)
            record.attachment.status.set("detaching", then="detached", after_s=self._site.delays.detach_s)

    def attached(self, instance_id: str) -> list[VolumeRecord]:
        return [r for r in self.records.values() if r.attachment and r.attachment.instance_id == instance_id]

    def delete_volume(self, params: dict[str, Any]) -> None:
        record = self.found(params["VolumeId"])
        if record.attachment:
            raise Refused("VolumeInUse", f"Volume {record.id} is currently attached")
        if record.status.state not in ("available", "error"):
            raise Refused("IncorrectState", f"Volume {record.id} is {record.status.state}")
        record.status.set("deleting", then="deleted", after_s=self._site.delays.delete_s)

    def describe_volumes(self, params: dict[str, Any]) -> dict[str, Any]:
        ids = params.get("VolumeIds", [])
        records = [self.found(each) for each in ids] if ids else list(self.records.values())
        seen = [record for record in records if not self._site.is_hidden(record.born)]
        kept = matching(seen, params, _FILTERS, lambda record: record.tags)
        shown, more = page(kept, params, bool(ids), self._site.limits.describe_page)
        answer: dict[str, Any] = {"Volumes": [self._shown(record) for record in shown]}
        return answer | ({"NextToken": more} if more else {})

    def _shown(self, record: VolumeRecord) -> dict[str, Any]:
        return {
            "VolumeId": record.id,
            "Size": record.size_gib,
            "SnapshotId": record.snapshot_id,
            "AvailabilityZone": record.zone,
            "State": record.status.state,
            "CreateTime": moment(record.created_ns),
            "Attachments": [self._attachment(record)] if record.attachment else [],
            "Encrypted": False,
            "VolumeType": record.kind,
            "MultiAttachEnabled": False,
            "Tags": tag_list(record.tags),
        }

    def _attachment(self, record: VolumeRecord) -> dict[str, Any]:
        assert record.attachment is not None
        return {
            "VolumeId": record.id,
            "InstanceId": record.attachment.instance_id,
            "Device": record.attachment.device,
            "State": record.attachment.status.state,
            "AttachTime": moment(record.attachment.attached_ns),
            "DeleteOnTermination": record.attachment.is_deleted_with_instance,
        }


def _of_attachment(pick: Callable[[Attachment], str]) -> Field:
    return lambda record: [pick(record.attachment)] if record.attachment else []


_FILTERS: dict[str, Field] = {
    "volume-id": lambda record: [record.id],
    "status": lambda record: [record.status.state],
    "snapshot-id": lambda record: [record.snapshot_id],
    "availability-zone": lambda record: [record.zone],
    "size": lambda record: [str(record.size_gib)],
    "attachment.instance-id": _of_attachment(lambda attachment: attachment.instance_id),
    "attachment.status": _of_attachment(lambda attachment: attachment.status.state),
    "attachment.device": _of_attachment(lambda attachment: attachment.device),
}
