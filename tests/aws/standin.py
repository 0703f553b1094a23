"""A strict stand-in for the parts of AWS that boxlink uses: EC2 (query protocol) and EBS direct (rest-json).

Where AWS is vague it is stricter. It speaks the wire protocols, so that boto3 works unchanged with ``endpoint_url``;
every request is checked against botocore's model, its signature and its sender's policy before anything is done.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore import xform_name
from botocore.model import OperationModel

from tests.aws import query_protocol, rest_json
from tests.aws.clock import DrivenClock
from tests.aws.ebs_direct import EbsDirect
from tests.aws.iam import ADMINISTRATOR, Policy, load_policy
from tests.aws.instances import Instances
from tests.aws.least import Noted
from tests.aws.policies import policy_document
from tests.aws.records import ACCOUNT_ID, REGION, check_id, tags_from
from tests.aws.refusal import Refused
from tests.aws.rights import ebs_rights, ec2_rights
from tests.aws.server import serving
from tests.aws.signature import RawRequest, check_signature
from tests.aws.site import BlockFile, Site
from tests.aws.snapshots import Snapshots
from tests.aws.volumes import Volumes

_EC2_OPERATIONS = {
    "RunInstances": "instances",
    "DescribeInstances": "instances",
    "TerminateInstances": "instances",
    "DescribeAvailabilityZones": "instances",
    "CreateVolume": "volumes",
    "DescribeVolumes": "volumes",
    "AttachVolume": "volumes",
    "DetachVolume": "volumes",
    "DeleteVolume": "volumes",
    "CreateSnapshot": "snapshots",
    "DescribeSnapshots": "snapshots",
    "DeleteSnapshot": "snapshots",
    "CreateTags": "tagging",
}


@dataclass(frozen=True)
class Identity:
    """Somebody with keys and a policy."""

    name: str
    access_key: str
    secret_key: str
    policy: Policy
    session_token: str = ""  # of keys that a role lends


@dataclass(frozen=True)
class Resource:
    """Something that is there, and is paid for."""

    kind: str
    id: str
    state: str
    tags: Mapping[str, str]


class Standin:
    def __init__(self, directory: Path, pace: float = 0.0) -> None:
        self.clock = DrivenClock(pace)
        self.site = Site(self.clock, BlockFile(directory))
        self.script, self.delays, self.limits = self.site.script, self.site.delays, self.site.limits
        self.snapshots = Snapshots(self.site)
        self.volumes = Volumes(self.site, self.snapshots)
        self.instances = Instances(self.site, self.volumes)
        self.snapshots.volumes, self.volumes.instances = self.volumes, self.instances
        self.ebs_direct = EbsDirect(self.site, self.snapshots)
        self.requests: Counter[str] = Counter()
        self.noted = Noted()
        self.endpoint = ""
        self._tagging = _Tagging(self)
        self._identities: dict[str, Identity] = {}
        self._lock = threading.RLock()
        self._roles: dict[str, Identity] = {}
        self.administrator = self.identity("administrator", ADMINISTRATOR)
        self.add_profile("boxlink-node", policy_document("node"))

    def identity(self, name: str, policy: Mapping[str, Any], session_token: str = "") -> Identity:
        """Keys of somebody who may do what a policy says."""
        access_key = f"{'ASIA' if session_token else 'AKIA'}{len(self._identities) + 1:016d}"
        who = Identity(name, access_key, f"secret of {name}", load_policy(policy), session_token)
        self._identities[access_key] = who
        return who

    def add_profile(self, name: str, policy: Mapping[str, Any]) -> None:
        """An instance profile, with a role of the same name."""
        self._roles[name] = self.identity(name, policy, session_token=f"session of {name}")
        self.instances.profiles.add(name)

    def identity_of(self, profile: str) -> Identity:
        """Whose keys an instance with this profile has."""
        return self._roles[profile]

    def role_of(self, profile: str) -> tuple[str, Callable[[], tuple[str, str, str]]] | None:
        """A role's name, and what gives its keys: access key, secret key, session token."""
        who = self._roles.get(profile)
        return None if who is None else (who.name, lambda: (who.access_key, who.secret_key, who.session_token))

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """The variables that lead a program's EC2 and EBS clients here, as somebody. S3 goes where it would."""
        who = identity or self.administrator
        named = {
            "AWS_ENDPOINT_URL_EC2": self.endpoint,
            "AWS_ENDPOINT_URL_EBS": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": who.access_key,
            "AWS_SECRET_ACCESS_KEY": who.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return named | ({"AWS_SESSION_TOKEN": who.session_token} if who.session_token else {})

    def resources(self) -> list[Resource]:
        """All that is there and paid for; what was under way to its end counts until it has ended."""
        with self._lock:
            self._settle()
            found = [
                *(("volume", r.id, r.status.state, r.tags) for r in self.volumes.records.values()),
                *(("snapshot", r.id, self.snapshots.state(r), r.tags) for r in self.snapshots.records.values()),
                *(("instance", r.id, r.status.state, r.tags) for r in self.instances.records.values()),
            ]
            return [Resource(*row) for row in sorted(found, key=lambda row: row[:2]) if row[2] != "terminated"]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For tests that reach into the state while clients run."""
        with self._lock:
            self._settle()
            yield

    def answer(self, request: RawRequest) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of one HTTP request; NoAnswer where it is to be lost."""
        service = "ebs" if request.path.startswith("/snapshots") else "ec2"
        request_id = f"request-{sum(self.requests.values()):012d}"
        try:
            operation, answer = self._carried_out(service, request)
        except Refused as refused:
            if service == "ebs":
                return rest_json.render_refusal(refused)
            return refused.status, {"Content-Type": "text/xml"}, query_protocol.render_refusal(refused, request_id)
        if service == "ebs":
            return rest_json.render_answer(operation, answer)
        return 200, {"Content-Type": "text/xml"}, query_protocol.render_answer(operation, answer, request_id)

    def _carried_out(self, service: str, request: RawRequest) -> tuple[OperationModel, dict[str, Any]]:
        secrets = {key: identity.secret_key for key, identity in self._identities.items()}
        signed = check_signature(request, secrets)
        if self._identities[signed.access_key].session_token != signed.session_token:
            raise Refused("AuthFailure", "the session token is not that of these keys", status=401)
        if signed.service != service or signed.region != REGION:
            raise Refused("SignatureDoesNotMatch", "Credential should be scoped to this service and region", status=403)
        if service == "ebs":
            operation, params = rest_json.parse_request(
                request.method, request.path, request.query, request.headers, request.body
            )
        else:
            operation, params = query_protocol.parse_request(request.body)
        with self._lock:
            self.requests[operation.name] += 1
            self._settle()
            self.script.caller = self._identities[signed.access_key].name
            self._authorize(service, self._identities[signed.access_key], operation.name, params)
            self.script.before(operation.name)
            answer = self._handler(service, operation.name)(params)
            self.script.after(operation.name)
        return operation, answer or {}

    def _authorize(self, service: str, identity: Identity, operation: str, params: dict[str, Any]) -> None:
        rights = ebs_rights if service == "ebs" else ec2_rights
        accesses = list(rights(operation, params, self.tags_of))
        refused = identity.policy.refused(accesses)
        who = f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/{identity.name}"
        if refused is not None:
            text = f"User: {who} is not authorized to perform: {refused.action} on resource: {refused.resource}"
            if service == "ebs":
                raise Refused("AccessDeniedException", text, reason="UNAUTHORIZED_ACCOUNT", status=403)
            raise Refused(
                "UnauthorizedOperation", f"You are not authorized to perform this operation. {text}", status=403
            )
        self.noted.add(identity.name, accesses)
        if params.get("DryRun"):
            text = "Request would have succeeded, but DryRun flag is set."
            raise Refused("DryRunOperation", text, status=412)

    def _handler(self, service: str, operation: str) -> Any:
        if service == "ebs":
            return getattr(self.ebs_direct, xform_name(operation))
        if operation not in _EC2_OPERATIONS:
            raise Refused("UnsupportedOperation", f"the stand-in does not do {operation}")
        part = {
            "instances": self.instances,
            "volumes": self.volumes,
            "snapshots": self.snapshots,
            "tagging": self._tagging,
        }
        return getattr(part[_EC2_OPERATIONS[operation]], xform_name(operation))

    def _settle(self) -> None:
        self.instances.settle()
        self.volumes.settle()

    def tags_of(self, resource_id: str) -> dict[str, str]:
        """The tags of a resource; none where there is no such resource."""
        for records in (self.volumes.records, self.snapshots.records, self.instances.records):
            if resource_id in records:
                return records[resource_id].tags
        return {}


class _Tagging:
    def __init__(self, standin: Standin) -> None:
        self._standin = standin

    def create_tags(self, params: dict[str, Any]) -> None:
        kinds = {
            "vol": ("VolumeID", self._standin.volumes.found),
            "snap": ("SnapshotID", self._standin.snapshots.found),
            "i": ("InstanceID", self._standin.instances.found),
        }
        held = []
        for resource_id in params["Resources"]:
            kind = resource_id.partition("-")[0]
            if kind not in kinds:
                raise Refused("InvalidID", f"The ID '{resource_id}' is not valid")
            word, found = kinds[kind]
            check_id(resource_id, kind, word)
            held.append(found(resource_id).tags)
        try:
            asked = tags_from(params["Tags"])
        except ValueError as error:
            raise Refused("InvalidParameterValue", str(error)) from error
        if any(len(tags.keys() | asked.keys()) > 50 for tags in held):
            raise Refused("TagLimitExceeded", "The maximum number of tags for a resource has been reached.")
        for tags in held:
            tags.update(asked)


@contextmanager
def running_standin(directory: Path, *, pace: float = 0.0) -> Iterator[Standin]:
    """A stand-in that serves on the loopback until the block ends; its blocks are kept in ``directory``.

    ``pace``: how fast its clock goes by itself; without, only whoever advances it or sleeps on it moves it.
    """
    standin = Standin(directory, pace)
    with serving(standin.answer) as endpoint:
        standin.endpoint = endpoint
        try:
            yield standin
        finally:
            standin.site.blocks.close()
