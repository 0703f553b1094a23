"""The volume driver of AWS: EC2's volumes and snapshots by boto3 (EC2 API 2016-11-15).

What it makes carries two tags of the driver's own, which are not shown among a resource's tags: ``boxlink:token`` finds
again what a killed caller made (CreateSnapshot takes no client token), and is what policies know our resources by
(docs/iam.md); ``boxlink:parent`` names a snapshot's parent, which EC2 does not tell.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from synclib.clock import Clock, Entropy
from synclib.errors import Conflict, Full, Missing, Unavailable
from synclib.store.outcome import NotApplied
from synclib.volume.aws_calls import Calls, client_settings
from synclib.volume.aws_errors import message_of, translate
from synclib.volume.base import Snapshot, SnapshotState, Volume, VolumeState
from synclib.volume.ebs_answers import TOKEN_TAG, snapshot_from, volume_from
from synclib.volume.ebs_blocks import EbsBlocks

_CLIENT_TOKEN_MAX = 64
_IDS_MAX = 200  # values of a filter
_PAGE = 500
_PAGES_MAX = 1000
_NEW_S = 60.0  # for so long a new resource may not be found (EC2, "Eventual consistency")
_SETTLE_S = 15.0  # for so long a snapshot is looked for whose making was not answered, before another is made
_DEVICES = [f"/dev/sd{letter}" for letter in "fghijklmnop"]
_BY_ID = Path("/dev/disk/by-id")

T = TypeVar("T")


def open_ebs(clock: Clock, entropy: Entropy, *, region: str | None = None, profile: str | None = None) -> EbsDriver:
    """The driver with boto3's usual credentials; AWS_ENDPOINT_URL and its like are obeyed."""
    import boto3
    from botocore.config import Config

    try:
        session = boto3.session.Session(profile_name=profile, region_name=region)
        config = Config(**client_settings())
        return EbsDriver(session.client("ec2", config=config), session.client("ebs", config=config), clock, entropy)
    except BotoCoreError as error:
        raise translate(error, "open AWS") from error


class EbsDriver:
    """``ec2`` and ``ebs`` are boto3's clients, which are safe between threads."""

    name = "ebs"
    why_copies = ""

    def __init__(self, ec2: Any, ebs: Any, clock: Clock, entropy: Entropy, *, by_id: Path = _BY_ID) -> None:
        self._ec2 = ec2
        self._calls = Calls(clock, entropy)
        self._blocks = EbsBlocks(ebs, self._calls)
        self._by_id = by_id
        self._new: dict[str, float] = {}

    def create_volume(
        self, *, size_gib: int, zone: str, token: str, tags: Mapping[str, str], snapshot_id: str = ""
    ) -> Volume:
        request = {
            "AvailabilityZone": zone,
            "Size": size_gib,
            "VolumeType": "gp3",
            "ClientToken": client_token(token),
            **_tags_at_birth("volume", {**tags, TOKEN_TAG: client_token(token)}),
            **({"SnapshotId": snapshot_id} if snapshot_id else {}),
        }
        answer = self._calls.repeated(f"create a volume in {zone}", lambda: self._ec2.create_volume(**request))
        return self._noted(volume_from(answer))

    def attach(self, volume_id: str, node: str) -> None:
        def attempt() -> None:
            volume = self._volume(volume_id)
            if volume.node == node and volume.state in (VolumeState.ATTACHING, VolumeState.IN_USE):
                return
            if volume.node:
                raise Conflict(
                    f"the volume {volume_id} is {volume.state} at {volume.node}",
                    hint="detach it there first, and wait until it is available",
                )
            device = self._free_device(node)
            try:
                self._ec2.attach_volume(VolumeId=volume_id, InstanceId=node, Device=device)
            except ClientError as error:
                if "already in use" in message_of(error) and device in message_of(error):
                    raise NotApplied(f"attach {volume_id}: {device} was taken meanwhile") from error
                raise

        # A first try whose answer was lost shows in the second try's look.
        self._calls.repeated(f"attach {volume_id} to {node}", attempt)

    def detach(self, volume_id: str, node: str) -> None:
        def attempt() -> None:
            volume = self._volume(volume_id)
            if volume.node == node and volume.state not in (VolumeState.DETACHING, VolumeState.BUSY):
                self._ec2.detach_volume(VolumeId=volume_id, InstanceId=node)

        self._calls.repeated(f"detach {volume_id} from {node}", attempt)

    def device(self, volume: Volume) -> Path:
        # Letters are only a wish on Nitro: the serial number, which udev makes a link of, is the volume's id.
        link = self._by_id / f"nvme-Amazon_Elastic_Block_Store_{volume.id.replace('-', '', 1)}"
        if "/" in volume.id or not link.exists():
            raise Unavailable(
                f"the volume {volume.id} is not seen here",
                hint="attaching takes some seconds; on an instance that is not Nitro there is no such link",
                path=str(link),
            )
        return link

    def snapshot(self, volume_id: str, *, token: str, tags: Mapping[str, str]) -> Snapshot:
        """CreateSnapshot takes no client token, so the tag that is put on in the same call stands for it. Two callers
        at the same moment may make two: tokens are for one caller that was killed."""
        mark = client_token(token)
        what = f"snapshot {volume_id}"
        request = {"VolumeId": volume_id, **_tags_at_birth("snapshot", {**tags, TOKEN_TAG: mark})}
        is_unanswered = False

        def attempt() -> Snapshot:
            nonlocal is_unanswered
            made = self._made(mark, _SETTLE_S if is_unanswered else 0.0)
            if made is not None:
                return made
            try:
                return self._noted(snapshot_from(self._calls.once(what, lambda: self._ec2.create_snapshot(**request))))
            except Unavailable as error:
                is_unanswered = is_unanswered or not isinstance(error, NotApplied)
                raise
            except Missing as error:
                raise self._too_new(volume_id, error) from error

        snapshot = self._calls.repeated(what, attempt)
        if snapshot.volume_id != volume_id:
            raise Conflict(
                f"the token {token!r} made a snapshot of {snapshot.volume_id}, not of {volume_id}",
                hint="use another token",
            )
        return snapshot

    def volumes(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Volume]:
        rows = self._described(self._ec2.describe_volumes, "Volumes", "volume-id", ids, tags or {})
        found = [volume_from(row) for row in rows if row.get("State") != "deleted"]
        return [volume for volume in found if _has(volume.tags, tags)]

    def snapshots(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Snapshot]:
        return [snapshot for snapshot in self._snapshots(ids, tags or {}) if _has(snapshot.tags, tags)]

    def tag(self, resource_id: str, tags: Mapping[str, str]) -> None:
        def attempt() -> None:
            try:
                self._ec2.create_tags(Resources=[resource_id], Tags=_tag_list(tags))
            except ClientError as error:
                raise self._too_new(resource_id, translate(error, f"tag {resource_id}")) from error

        self._calls.repeated(f"tag {resource_id}", attempt)

    def delete_volume(self, volume_id: str) -> None:
        # Who may delete only what carries our tag is told of a lack of rights where nothing is there any more.
        def attempt() -> None:
            volume = next(iter(self.volumes([volume_id])), None)
            if volume is not None and volume.state is not VolumeState.DELETING:
                self._ec2.delete_volume(VolumeId=volume_id)

        self._until_missing(f"delete {volume_id}", attempt)

    def delete_snapshot(self, snapshot_id: str) -> None:
        def attempt() -> None:
            if self.snapshots([snapshot_id]):
                self._ec2.delete_snapshot(SnapshotId=snapshot_id)

        self._until_missing(f"delete {snapshot_id}", attempt)

    def blocks(self) -> EbsBlocks:
        return self._blocks

    def _until_missing(self, what: str, call: Callable[[], object]) -> None:
        try:
            self._calls.repeated(what, call)
        except Missing:
            return

    def _volume(self, volume_id: str) -> Volume:
        for volume in self.volumes([volume_id]):
            return volume
        raise self._too_new(volume_id, Missing(f"there is no volume {volume_id}", hint="was it deleted?"))

    def _snapshots(self, ids: Sequence[str], tags: Mapping[str, str]) -> list[Snapshot]:
        describe = functools.partial(self._ec2.describe_snapshots, OwnerIds=["self"])
        return [snapshot_from(row) for row in self._described(describe, "Snapshots", "snapshot-id", ids, tags)]

    def _made(self, mark: str, settle_s: float) -> Snapshot | None:
        """The snapshot of a token, looked for during ``settle_s``. Those that have failed go."""
        stop = self._calls.clock.monotonic() + settle_s
        while True:
            found = self._snapshots([], {TOKEN_TAG: mark})
            for failed in [each for each in found if each.state is SnapshotState.ERROR]:
                self.delete_snapshot(failed.id)  # nothing can be made of it, and its token would be spent for ever
                found.remove(failed)
            if found:
                return min(found, key=lambda snapshot: (snapshot.started_at_ns, snapshot.id))
            if self._calls.clock.monotonic() >= stop:
                return None
            self._calls.clock.sleep(1.0)

    def _free_device(self, node: str) -> str:
        filters = [{"Name": "attachment.instance-id", "Values": [node]}]
        rows = self._pages(self._ec2.describe_volumes, "Volumes", filters)
        used = {str(attachment.get("Device")) for row in rows for attachment in row.get("Attachments", [])}
        for device in _DEVICES:
            if device not in used:
                return device
        raise Full(f"{node} has no device name left for a further volume", hint="detach volumes that it does not need")

    def _described(
        self, describe: Callable[..., Any], name: str, id_filter: str, ids: Sequence[str], tags: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """By filters and not by ids: an id that is not there is no error then."""
        by_tags = [{"Name": f"tag:{key}", "Values": [_literal(value)]} for key, value in sorted(tags.items())]
        rows: list[dict[str, Any]] = []
        for start in range(0, max(1, len(ids)), _IDS_MAX):
            some = list(ids[start : start + _IDS_MAX])
            by_id = [{"Name": id_filter, "Values": some}] if some else []
            rows += self._pages(describe, name, [*by_id, *by_tags])
        return rows

    def _pages(self, describe: Callable[..., Any], name: str, filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        for _ in range(_PAGES_MAX):
            request = {"MaxResults": _PAGE, **({"Filters": filters} if filters else {}), **more}
            answer = self._calls.repeated(f"list {name.lower()}", lambda request=request: describe(**request))  # type: ignore[misc]
            rows += answer.get(name, [])
            if not answer.get("NextToken"):
                return rows
            more = {"NextToken": answer["NextToken"]}
        raise Unavailable(f"list {name.lower()}: the list does not end")

    def _noted(self, made: T) -> T:
        """Remember that something is new."""
        now = self._calls.clock.monotonic()
        self._new = {each: at for each, at in self._new.items() if now < at + _NEW_S}
        self._new[made.id] = now  # type: ignore[attr-defined]
        return made

    def _too_new(self, resource_id: str, error: Exception) -> Exception:
        """What was made a moment ago and is not found is only not seen yet."""
        made_at = self._new.get(resource_id)
        if isinstance(error, Missing) and made_at is not None and self._calls.clock.monotonic() < made_at + _NEW_S:
            return NotApplied(error.message, hint=error.hint)
        return error


def client_token(token: str) -> str:
    """A token as EC2 takes it: at most 64 characters of ASCII."""
    if len(token) <= _CLIENT_TOKEN_MAX and token.isascii() and token.isprintable() and " " not in token:
        return token
    return hashlib.sha256(token.encode()).hexdigest()


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _tags_at_birth(kind: str, tags: Mapping[str, str]) -> dict[str, Any]:
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": _tag_list(tags)}]}


def _literal(value: str) -> str:
    """A filter's value in which no character is a wildcard."""
    return value.replace("\\", "\\\\").replace("*", "\\*").replace("?", "\\?")


def _has(tags: Mapping[str, str], wanted: Mapping[str, str] | None) -> bool:
    return all(tags.get(key) == value for key, value in (wanted or {}).items())
