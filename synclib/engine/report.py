"""What a node says of itself in the store, so that a fleet can be looked at from anywhere: ``node/<node>``."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synclib.clock import now_text
from synclib.core.markers import Down
from synclib.core.names import FOLLOWED, STATE_DIRECTORY, check_node, node_key
from synclib.core.registration import NodeStatus
from synclib.disk.markers import Markers
from synclib.disk.regular import open_regular
from synclib.engine.host import Host
from synclib.errors import BoxlinkError, Invalid
from synclib.store.base import Store

EVERY_S = 30.0
_CHANGED_S = 2.0
_TEXT_MAX = 300
_CHANNELS_MAX = 64


@dataclass(frozen=True, slots=True)
class MountFigures:
    """Of one mount: what part of its dataset is here, reads since it was made, and those that failed."""

    hydrated: float
    reads: int = 0
    failed_reads: int = 0


@dataclass(frozen=True, slots=True)
class ProxyFigures:
    """What a proxy answered since its start, and how much of that with 500 and more."""

    requests: int
    errors: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node is, as whoever started it said. ``mounts``: how its mounts do, by dataset; ``proxy``: what the proxy
    beside it answered, None where there is none or it does not tell."""

    role: str = ""
    release: str = ""
    mounts: Callable[[], Mapping[str, MountFigures]] = field(default=dict)
    proxy: Callable[[], ProxyFigures | None] = field(default=lambda: None)


class Reporter:
    """Says it every half minute, and soon after something changed."""

    def __init__(self, data: Path, store: Store, host: Host, identity: Identity, channels: Sequence[str] = ()) -> None:
        """``channels``: those of datasets that the node follows."""
        self._data, self._store, self._host, self._identity = data, store, host, identity
        self._channels = channels
        self._said: NodeStatus | None = None
        self._looked_at = self._said_at = float("-inf")

    def round(
        self, datasets: Mapping[str, BoxlinkError | None], swap: str = "", held: Mapping[str, int] | None = None
    ) -> None:
        """``datasets``: those that the node knows, with what is wrong of each; ``swap``: the last wish to swap that it
        took on; ``held``: the seqs where it is told to stand. Any BoxlinkError: it is said later."""
        now = self._host.clock.monotonic()
        if now - self._looked_at < _CHANGED_S:
            return
        self._looked_at = now
        is_due = now - self._said_at >= EVERY_S
        found = self._status(datasets, self._said if not is_due else None).model_copy(
            update={"swap": swap, "held": dict(held or {})}
        )
        if not is_due and self._said is not None and _is_same(found, self._said):
            return
        self._store.put(node_key(self._host.node), found.model_dump_json().encode())
        self._said, self._said_at = found, now

    def end(self) -> None:
        """Say that nothing further comes. Any BoxlinkError: then it is missed."""
        if self._said is not None:
            last = self._said.model_copy(update={"is_stopped": True, "at": now_text(self._host.clock)})
            self._store.put(node_key(self._host.node), last.model_dump_json().encode())

    def _status(self, datasets: Mapping[str, BoxlinkError | None], former: NodeStatus | None) -> NodeStatus:
        """``former``: whose figures are good enough, so that mounts and the proxy are not asked each time."""
        downs = {name: down for name in datasets if (down := self._down(name)) is not None}
        seqs = {name: down.seq for name, down in downs.items()}
        if former is not None and former.seq != seqs:
            former = None  # what is mounted now was not there, or was another mount
        mounts = self._identity.mounts() if former is None else {}
        proxy = self._identity.proxy() if former is None else None
        disk = shutil.disk_usage(self._data)
        return NodeStatus(
            role=self._identity.role,
            release=self._identity.release,
            seq=seqs,
            channels=sorted({*self._channels, *self._followed()})[:_CHANNELS_MAX],
            mode={name: down.mode for name, down in downs.items()},
            reason={name: down.reason[:_TEXT_MAX] for name, down in downs.items() if down.reason},
            hydrated=former.hydrated if former else {name: round(one.hydrated, 4) for name, one in mounts.items()},
            errors={name: f"{error.kind}: {error.message}"[:_TEXT_MAX] for name, error in datasets.items() if error},
            reads=former.reads if former else sum(one.reads for one in mounts.values()),
            failed_reads=former.failed_reads if former else sum(one.failed_reads for one in mounts.values()),
            proxy_requests=former.proxy_requests if former else None if proxy is None else proxy.requests,
            proxy_errors=former.proxy_errors if former else None if proxy is None else proxy.errors,
            disk_bytes=disk.total,
            disk_free_bytes=disk.free,
            every_s=EVERY_S,
            at=now_text(self._host.clock),
        )

    def _followed(self) -> Iterator[str]:
        """The channels of releases that each ``boxlink up`` on this data directory follows, as it noted."""
        for path in sorted((self._data / STATE_DIRECTORY).glob(f"*{FOLLOWED}"))[:_CHANNELS_MAX]:
            with contextlib.suppress(OSError, Invalid), open(open_regular(path), errors="replace") as file:
                yield check_node(file.read(_TEXT_MAX).strip())

    def _down(self, name: str) -> Down | None:
        try:
            return Markers(self._data / name).down()
        except (Invalid, OSError):
            return None


def _is_same(one: NodeStatus, other: NodeStatus) -> bool:
    """But for what changes always."""
    always = {"at": "", "disk_free_bytes": 0}
    return one.model_copy(update=always) == other.model_copy(update=always)
