"""EC2's instances: pending to running to terminated, with the volumes that they bring and take along."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.aws.clock import Timeline
from tests.aws.records import ACCOUNT_ID, Field, check_id, matching, moment, page, tag_list, tags_at_birth
from tests.aws.refusal import Refused
from tests.aws.site import Site
from tests.aws.volumes import Volumes

USER_DATA_BYTES_MAX = 16 << 10
_MISMATCH = Refused("IdempotentParameterMismatch", "The client token was used with other parameters.")
_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
# What the stand-in knows how to do; a parameter that it would pass over in silence is refused.
_KNOWN = {
    "BlockDeviceMappings",
    "ClientToken",
    "DryRun",
    "EbsOptimized",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceType",
    "KeyName",
    "MaxCount",
    "MetadataOptions",
    "MinCount",
    "Placement",
    "SecurityGroupIds",
    "SubnetId",
    "TagSpecifications",
    "UserData",
}


@dataclass
class InstanceRecord:
    id: str
    kind: str
    image_id: str
    zone: str
    status: Timeline
    born: float
    launched_ns: int
    user_data: bytes
    token: str
    subnet_id: str
    address: str
    profile: str
    metadata: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    has_started: bool = False


class Instances:
    """``started`` is told of each instance when it is running, ``ended`` when it is being ended, so that something can
    really run for it (machines.py)."""

    def __init__(self, site: Site, volumes: Volumes) -> None:
        self._site = site
        self._volumes = volumes
        self.records: dict[str, InstanceRecord] = {}
        self.images = {"ami-00000000000000001"}
        self.subnets = {f"subnet-{number:017x}": zone for number, zone in enumerate(site.zones, 1)}
        self.groups = {"sg-00000000000000001"}
        self.profiles: set[str] = set()
        self.started: Callable[[InstanceRecord], None] = lambda record: None
        self.ended: Callable[[InstanceRecord], None] = lambda record: None

    def found(self, instance_id: str) -> InstanceRecord:
        check_id(instance_id, "i", "InstanceID")
        record = self.records.get(instance_id)
        if record is None or self._site.is_hidden(record.born):
            raise Refused("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist")
        return record

    def target_zone(self, instance_id: str) -> str:
        record = self.found(instance_id)
        if record.status.state not in ("running", "stopped"):
            raise Refused("IncorrectState", f"Instance '{instance_id}' is not 'running'.")
        return record.zone

    def settle(self) -> None:
        """Start what is running by now, and take from ended instances what they held."""
        for record in self.records.values():
            if record.status.state == "running" and not record.has_started:
                record.has_started = True
                self.started(record)
            if record.status.state == "terminated":
                for volume in self._volumes.attached(record.id):
                    assert volume.attachment is not None
                    if volume.attachment.is_deleted_with_instance:
                        self._volumes.devices.vanish(volume)
                        volume.attachment = None
                        volume.status.set("deleting", then="deleted", after_s=self._site.delays.delete_s)
                    elif volume.attachment.status.state not in ("detaching", "detached"):
                        self._volumes.let_go(volume, is_gone=True)

    def run_instances(self, params: dict[str, Any]) -> dict[str, Any]:
        zone = self._checked(params)
        tags = tags_at_birth(params, ["instance", "volume"])
        token = params.get("ClientToken", "")
        if len(token) > 64:
            raise Refused("InvalidParameterValue", "ClientToken must be no longer than 64 characters")
        known = self._site.tokens.begin("RunInstances", token, params, _MISMATCH)
        if known:
            records = [self.records[each] for each in known.split()]
            if any(record.status.state == "terminated" for record in records):
                raise Refused("IdempotentInstanceTerminated", "The instances of this client token are terminated.")
            return self._reservation(records)
        kind, count = params["InstanceType"], params["MaxCount"]
        if {zone, (zone, kind)} & self._site.script.exhausted:
            text = (
                f"We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone})."
            )
            raise Refused("InsufficientInstanceCapacity", text, status=500)
        running = sum(record.status.state != "terminated" for record in self.records.values())
        if running + count > self._site.limits.instances:
            raise Refused("VcpuLimitExceeded", "You have requested more vCPU capacity than your current limit allows.")
        records = [self._start(params, zone, tags) for _ in range(count)]
        self._site.tokens.end("RunInstances", token, " ".join(record.id for record in records))
        return self._reservation(records)

    def _checked(self, params: dict[str, Any]) -> str:
        """The zone; Refused where something does not exist or does not fit."""
        if unknown := set(params) - _KNOWN:
            raise Refused("UnsupportedOperation", f"the stand-in does not know {sorted(unknown)}")
        for name in ("ImageId", "InstanceType"):
            if name not in params:
                raise Refused("MissingParameter", f"The request must contain the parameter {name}")
        if params["ImageId"] not in self.images:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{params['ImageId']}]' does not exist")
        if not 1 <= params["MinCount"] <= params["MaxCount"]:
            raise Refused("InvalidParameterValue", "MinCount is at least 1 and at most MaxCount")
        for group in params.get("SecurityGroupIds", []):
            if group not in self.groups:
                raise Refused("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        profile = params.get("IamInstanceProfile", {})
        if profile and profile.get("Name") not in self.profiles:
            raise Refused("InvalidParameterValue", f"Invalid IAM Instance Profile {profile}")
        _user_data(params)
        for mapping in params.get("BlockDeviceMappings", []):
            if "Ebs" not in mapping or "DeviceName" not in mapping:
                raise Refused("InvalidBlockDeviceMapping", "a mapping has a DeviceName and Ebs")
            self._volumes.check_disk(_disk(mapping))
        return self._zone(params)

    def _zone(self, params: dict[str, Any]) -> str:
        subnet, asked = params.get("SubnetId", ""), params.get("Placement", {}).get("AvailabilityZone", "")
        if subnet and subnet not in self.subnets:
            raise Refused("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")
        if asked and asked not in self._site.zones:
            raise Refused("InvalidParameterValue", f"Invalid availability zone: [{asked}]")
        if subnet and asked and self.subnets[subnet] != asked:
            raise Refused("InvalidParameterValue", f"The subnet {subnet} is not in {asked}")
        return self.subnets[subnet] if subnet else asked or self._site.zones[0]

    def _start(self, params: dict[str, Any], zone: str, tags: dict[str, dict[str, str]]) -> InstanceRecord:
        record = InstanceRecord(
            self._site.ids.new("i"),
            params["InstanceType"],
            params["ImageId"],
            zone,
            self._site.timeline("pending"),
            self._site.now(),
            self._site.clock.wall_ns(),
            _user_data(params),
            params.get("ClientToken", ""),
            params.get("SubnetId", ""),
            f"10.11.23.{len(self.records) + 4}",
            params.get("IamInstanceProfile", {}).get("Name", ""),
            params.get("MetadataOptions", {}),
            tags.get("instance", {}),
            params.get("SecurityGroupIds", []),
        )
        record.status.set("pending", then="running", after_s=self._site.delays.run_s)
        self.records[record.id] = record
        for mapping in params.get("BlockDeviceMappings", []):
            volume = self._volumes.make(zone, _disk(mapping), dict(tags.get("volume", {})))
            ends_too = mapping["Ebs"].get("DeleteOnTermination", True)
            self._volumes.bind(volume, record.id, mapping["DeviceName"], is_deleted_with_instance=ends_too)
        return record

    def terminate_instances(self, params: dict[str, Any]) -> dict[str, Any]:
        records = [self.found(each) for each in params["InstanceIds"]]
        changes = []
        for record in records:
            before = record.status.state
            if before not in ("shutting-down", "terminated"):
                record.status.set("shutting-down", then="terminated", after_s=self._site.delays.terminate_s)
                self.ended(record)
            changes.append(
                {
                    "InstanceId": record.id,
                    "PreviousState": _state(before),
                    "CurrentState": _state(record.status.state),
                }
            )
        return {"TerminatingInstances": changes}

    def describe_instances(self, params: dict[str, Any]) -> dict[str, Any]:
        ids = params.get("InstanceIds", [])
        records = [self.found(each) for each in ids] if ids else list(self.records.values())
        seen = [record for record in records if not self._site.is_hidden(record.born)]
        kept = matching(seen, params, _FILTERS, lambda record: record.tags)
        shown, more = page(kept, params, bool(ids), self._site.limits.describe_page)
        answer: dict[str, Any] = {"Reservations": [self._reservation([record]) for record in shown]}
        return answer | ({"NextToken": more} if more else {})

    def describe_availability_zones(self, params: dict[str, Any]) -> dict[str, Any]:
        if set(params) - {"DryRun", "Filters"}:
            raise Refused("UnsupportedOperation", f"the stand-in does not know {sorted(params)}")
        fields: dict[str, Field] = {"zone-name": lambda zone: [zone], "state": lambda zone: ["available"]}
        zones = matching(self._site.zones, params, fields, lambda zone: {})
        return {"AvailabilityZones": [{"ZoneName": zone, "State": "available"} for zone in zones]}

    def _reservation(self, records: list[InstanceRecord]) -> dict[str, Any]:
        return {
            "ReservationId": "r-00000000000000001",
            "OwnerId": ACCOUNT_ID,
            "Instances": [self._shown(record) for record in records],
        }

    def _shown(self, record: InstanceRecord) -> dict[str, Any]:
        return {
            "InstanceId": record.id,
            "ImageId": record.image_id,
            "InstanceType": record.kind,
            "State": _state(record.status.state),
            "LaunchTime": moment(record.launched_ns),
            "Placement": {"AvailabilityZone": record.zone},
            "PrivateIpAddress": record.address,
            **({"SubnetId": record.subnet_id} if record.subnet_id else {}),
            "SecurityGroups": [{"GroupId": group, "GroupName": group} for group in record.groups],
            **(
                {"IamInstanceProfile": {"Arn": f"arn:aws:iam::{ACCOUNT_ID}:instance-profile/{record.profile}"}}
                if record.profile
                else {}
            ),
            "ClientToken": record.token,
            "BlockDeviceMappings": [
                {"DeviceName": volume.attachment.device, "Ebs": {"VolumeId": volume.id}}
                for volume in self._volumes.attached(record.id)
                if volume.attachment
            ],
            "Tags": tag_list(record.tags),
        }


def _user_data(params: dict[str, Any]) -> bytes:
    try:
        data = base64.b64decode(params.get("UserData", ""), validate=True)
    except binascii.Error as error:
        raise Refused("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data") from error
    if len(data) > USER_DATA_BYTES_MAX:
        raise Refused("InvalidParameterValue", f"User data is limited to {USER_DATA_BYTES_MAX} bytes")
    return data


def _disk(mapping: dict[str, Any]) -> dict[str, Any]:
    """A block device mapping in the words of CreateVolume."""
    disk = dict(mapping["Ebs"])
    return disk | ({"Size": disk["VolumeSize"]} if "VolumeSize" in disk else {})


def _state(name: str) -> dict[str, Any]:
    return {"Code": _CODES[name], "Name": name}


_FILTERS: dict[str, Field] = {
    "instance-id": lambda record: [record.id],
    "client-token": lambda record: [record.token],
    "instance-state-name": lambda record: [record.status.state],
    "availability-zone": lambda record: [record.zone],
    "instance-type": lambda record: [record.kind],
}
