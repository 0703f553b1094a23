"""The objects that servers put into the store for others to find: ``proxy/…``, ``node/…``, ``channel/…``."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from synclib.core.names import check_dataset, dataset_root, proxy_key, release_root
from synclib.errors import Corrupt, Invalid

REGISTRATION_BYTES_MAX = 16 << 10
CHANNEL_BYTES_MAX = 16 << 10
MOVES_MAX = 1 << 62
NODE_STATUS_BYTES_MAX = 256 << 10
CACHE_SECONDS_MAX = 10 * 365 * 86400


def _dataset(name: str) -> str:
    try:
        return check_dataset(name)
    except Invalid as error:
        raise ValueError(error.message) from error


Dataset = Annotated[str, AfterValidator(_dataset)]
Pattern = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9._~/-]*\*?$", max_length=256)]
Path = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._~/-]*)?$", max_length=256)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SLIDE = re.compile(r"\s*I handle ['\u2018\u2019]([^'\u2018\u2019]+)['\u2018\u2019]\.(?:\s*Cache for (\w+)\.?)?\s*")
_KEY = re.compile(r"proxy/([0-9a-f.:]+)\.p([0-9]{1,5})")


class Registration(BaseModel):
    """``proxy/<ip>.p<port>``: what a backend handles and how long its answers keep."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    v: Literal[1] = 1
    handles: list[Pattern] = Field(min_length=1, max_length=64)
    probe: Path = ""  # a 200 of it says that the server does its work; empty where that is taken for granted
    cache: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}[smhd]$")] | None = None
    state: Literal["active", "draining"] = "active"
    lease_s: float = Field(default=30, ge=1, le=3600)
    node: str = Field(default="", max_length=128)
    release: str = Field(default="", max_length=128)
    dataset: str = Field(default="", max_length=128)
    seq: int = Field(default=0, ge=0, lt=1 << 63)
    walls: list[int] = Field(default=[], max_length=64)  # seqs that it serves beside that
    settled: bool = True  # it holds all that it means to: who may end when this one is ready can end
    requests: int = Field(default=0, ge=0, lt=1 << 63)  # answered since its start, and those of them with 5xx
    errors: int = Field(default=0, ge=0, lt=1 << 63)
    renewed: int = Field(default=0, ge=0, lt=1 << 63)  # rises with each renewal, so that the object's etag changes

    @property
    def cache_seconds(self) -> int | None:
        """How long an answer may be kept that says nothing itself; None where nothing was registered."""
        if self.cache is None:
            return None
        return min(int(self.cache[:-1]) * _UNITS[self.cache[-1]], CACHE_SECONDS_MAX)


class NodeStatus(BaseModel):
    """``node/<node>``: what a node says of itself. By dataset: the seq that stands there, the one that it is told to
    stand at by a marker or a channel, how and why so, what part of it is here (0 to 1), what is wrong. ``channels``:
    those that it follows; None of a boxlink that did not say so yet. ``reads`` and ``failed_reads``: of its mounts,
    since they were made. ``proxy_requests`` and ``proxy_errors``: of the proxy that runs beside it, since its start;
    None where there is none, or it did not answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    v: Literal[1] = 1
    role: str = Field(default="", max_length=128)
    release: str = Field(default="", max_length=160)
    seq: dict[str, Annotated[int, Field(ge=0, lt=1 << 63)]] = {}
    held: dict[str, Annotated[int, Field(ge=1, lt=1 << 63)]] = {}
    channels: list[Annotated[str, Field(max_length=128)]] | None = Field(default=None, max_length=64)
    mode: dict[str, str] = {}
    reason: dict[str, str] = {}
    hydrated: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    errors: dict[str, str] = {}
    swap: str = Field(default="", max_length=200)  # the last wish to swap its volume that it took on
    reads: int = Field(default=0, ge=0, lt=1 << 63)
    failed_reads: int = Field(default=0, ge=0, lt=1 << 63)
    proxy_requests: int | None = Field(default=None, ge=0, lt=1 << 63)
    proxy_errors: int | None = Field(default=None, ge=0, lt=1 << 63)  # answers of 500 and more
    disk_bytes: int = Field(default=0, ge=0, lt=1 << 63)
    disk_free_bytes: int = Field(default=0, ge=0, lt=1 << 63)
    is_stopped: bool = False  # it ended in order, and says nothing further
    every_s: float = Field(default=30, gt=0, le=3600)  # it is said again at least so often
    at: str = Field(max_length=64)


def parse_node_status(data: bytes, key: str) -> NodeStatus:
    try:
        return NodeStatus.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        message = f"a node's status: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Corrupt(message, key=key) from error


class Channel(BaseModel):
    """``channel/<name>``: the seq that its followers should stand at; moved by compare-and-swap."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    v: Literal[1] = 1
    dataset: Dataset | None = None
    release: Dataset | None = None
    seq: int = Field(ge=1, lt=1 << 63)
    frozen: bool = False  # it is not to be moved
    moves: int = Field(default=0, ge=0, lt=MOVES_MAX)  # rises with each change: an older state is told from a newer one
    at: str = Field(max_length=64)

    @model_validator(mode="after")
    def _check(self) -> Channel:
        if (self.dataset is None) == (self.release is None):
            raise ValueError("a channel names a dataset, or a release")
        return self

    @property
    def root(self) -> str:
        """The key prefix of what it names."""
        if self.dataset is not None:
            return dataset_root(self.dataset)
        assert self.release is not None
        return release_root(self.release)


def parse_channel(data: bytes, name: str) -> Channel:
    try:
        return Channel.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise Corrupt(
            f"channel {name} does not parse: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint=f"boxlink channel set {name} DATASET SEQ writes it anew",
        ) from error


def parse_registration(data: bytes) -> Registration:
    """A registration from its object: JSON, or the plain line ``I handle '/tiles/*'. Cache for 365d``."""
    if len(data) > REGISTRATION_BYTES_MAX:
        raise Corrupt(f"a registration of {len(data)} bytes is too large")
    try:
        if not data.lstrip().startswith(b"{"):
            return Registration.model_validate(_slide_line(data.decode()))
        return Registration.model_validate_json(data)
    except UnicodeDecodeError as error:
        raise Corrupt("a registration is not UTF-8") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise Corrupt(f"a registration's {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _slide_line(text: str) -> dict[str, object]:
    match = _SLIDE.fullmatch(text)
    if match is None:
        raise Corrupt("a registration is neither JSON nor \"I handle '/…'. Cache for …\"")
    return {"handles": [match[1]], "cache": match[2]}


def parse_proxy_key(key: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """(address, port) that a registration's key names; only the spelling that builds back is accepted."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise Corrupt("no registration has such a name", key=key)
    try:
        address = ipaddress.ip_address(match[1])
    except ValueError as error:
        raise Corrupt("a registration's name holds no IP address", key=key) from error
    port = int(match[2])
    if not 0 < port < 65536 or proxy_key(str(address), port) != key:
        raise Corrupt("a registration's name holds no port, or is not in its plain spelling", key=key)
    return address, port
