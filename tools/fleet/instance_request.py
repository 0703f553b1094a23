"""What is asked of EC2 to start a node: RunInstances (API version 2016-11-15), with user-data for the bootstrap.

The client token is made of the node's name and all that is asked: the same command again starts nothing further.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synclib.core.machine import Machine
from synclib.core.snapshot_tags import STORE, store_tag
from synclib.errors import Invalid
from tools.fleet.settings_tags import settings_tags

USER_DATA_BYTES_MAX = 16 << 10
PINS_TAG = "boxlink:pins"
_TAG_CHARACTERS_MAX = 256


@dataclass(frozen=True)
class Start:
    """What the instance is to become. ``sha256``: of the release's boot tar, empty where its signature is trusted."""

    node: str
    role: str
    store: str
    release: str
    sha256: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, int] = field(default_factory=dict)  # datasets that stay at a seq
    is_from_snapshot: bool = False  # they begin from volumes of snapshots


def store_of(url: str) -> dict[str, str]:
    """The tag that tells a store's instances from another's in the same account."""
    return {STORE: store_tag(url.rstrip("/"))}


def user_data(start: Start) -> str:
    """TOML for ``boxlink bootstrap``. Invalid where it does not fit."""
    found: dict[str, object] = {"store": start.store, "role": start.role, "release": start.release}
    if start.sha256:
        found["sha256"] = start.sha256
    words = ["boxlink", "up", start.role, "--data", "{data}", "--release", "{release}", "--node", start.node]
    words += [word for name, value in start.values.items() for word in ("--set", f"{name}={value}")]
    words += [word for name, seq in start.pins.items() for word in ("--seq", f"{name}={seq}")]
    words += ["--from", "snapshot"] if start.is_from_snapshot else []
    found |= {"node": start.node, "run": words}
    # Strings and lists of strings are written alike in JSON and TOML, but for DEL.
    text = "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in found.items())
    if len(text.encode()) > USER_DATA_BYTES_MAX or "\x7f" in text:
        raise Invalid(
            f"the user-data would have {len(text.encode())} bytes", hint=f"at most {USER_DATA_BYTES_MAX}; fewer --set"
        )
    return text


def requests(machine: Machine, start: Start) -> list[dict[str, object]]:
    """The parameters of RunInstances, one set for each type and subnet, the wished for first."""
    subnets: Sequence[str | None] = machine.subnets or (None,)
    return [_request(machine, start, kind, subnet) for kind in machine.types for subnet in subnets]


def pins_text(pins: Mapping[str, int]) -> str:
    """As ``--seq`` has them: so an instance that takes this one's place later stays at the same seqs."""
    text = " ".join(f"{dataset}={seq}" for dataset, seq in sorted(pins.items()))
    if len(text) > _TAG_CHARACTERS_MAX:
        raise Invalid("a tag cannot hold so many --seq", hint=f"{_TAG_CHARACTERS_MAX} characters at most")
    return text


def _request(machine: Machine, start: Start, kind: str, subnet: str | None) -> dict[str, object]:
    tags = {
        "Name": start.node,
        "boxlink:node": start.node,
        "boxlink:role": start.role,
        "boxlink:release": start.release,
        **({PINS_TAG: pins_text(start.pins)} if start.pins else {}),
    }
    request: dict[str, object] = {
        "ImageId": machine.image,
        "InstanceType": kind,
        "MinCount": 1,
        "MaxCount": 1,
        "UserData": user_data(start),
        # Version 1 of the metadata service answers whoever can make the instance fetch a URL.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "TagSpecifications": [
            {
                "ResourceType": resource,
                "Tags": [{"Key": name, "Value": value} for name, value in {**tags, **own}.items()],
            }
            for resource, own in (
                ("instance", {**store_of(start.store), **settings_tags(start.values)}),
                ("volume", {}),
            )
        ],
    }
    if subnet is not None:
        request["SubnetId"] = subnet
    if machine.security_groups:
        request["SecurityGroupIds"] = list(machine.security_groups)
    if machine.profile:
        request["IamInstanceProfile"] = {"Name": machine.profile}
    request["ClientToken"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return request
