"""What a fleet looks like from the store: its nodes, what they serve, how far behind they are, what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synclib.core.registration import Channel, NodeStatus, Registration

_SILENT = 3.0  # intervals
_DISK_FREE_MIN = 0.05
_DAY_S = _HISTORY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as it is found in the store. ``age_s``: since it said something, by this machine's clock; negative where
    its own is ahead."""

    node: str
    status: NodeStatus | None
    age_s: float = 0.0
    registrations: Mapping[str, Registration] = field(default_factory=dict)
    last_line: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """``lag``: by dataset, how many seqs it is behind where it should be."""

    seen: Seen
    lag: Mapping[str, int]
    alarms: Sequence[str]

    @property
    def is_history(self) -> bool:
        """Whether it was stopped so long ago that nobody looks for it among those that run."""
        status = self.seen.status
        return status is not None and status.is_stopped and not self.alarms and self.seen.age_s > _HISTORY_S


def is_live(status: NodeStatus, age_s: float) -> bool:
    """Whether a node that said this so long ago is one that runs, as far as anybody can tell."""
    return not status.is_stopped and age_s <= silence_s(status)


def doubt_s(status: NodeStatus, age_s: float) -> float:
    """How long it is to be seen whether a node renews what it said, before it is taken for gone: clocks differ, but not
    by days. 0 where there is no doubt."""
    is_told = -silence_s(status) <= age_s <= silence_s(status)
    return 0.0 if status.is_stopped or is_told or age_s > _DAY_S else silence_s(status)


def silence_s(status: NodeStatus) -> float:
    """After how long without a word a node is taken for gone."""
    return _SILENT * status.every_s


def may_follow(status: NodeStatus, name: str, channel: Channel | None) -> bool:
    """Whether a node follows a channel (None: one that is damaged). One that does not say which it follows may where it
    is told to stand at just that seq, or runs just that release."""
    if status.channels is not None:
        return name in status.channels
    if channel is None:
        return False
    if channel.dataset is None:
        return status.release == f"{channel.release}@{channel.seq}"
    return status.held.get(channel.dataset) == channel.seq


def row_of(seen: Seen, wanted: Mapping[str, int], lag_max: int) -> Row:
    """``wanted``: the seq of each dataset's head; a node that is told to stand at another is measured by that. Further
    behind than ``lag_max`` is an alarm."""
    status = seen.status
    if status is None:
        return Row(seen, {}, ["it is registered, and never said how it does"])
    if status.is_stopped:
        return Row(seen, {}, [])
    wanted = {**wanted, **status.held}
    lag = {name: max(0, wanted[name] - seq) for name, seq in status.seq.items() if name in wanted}
    alarms = [f"{name}: {text}" for name, text in status.errors.items()]
    if not is_live(status, seen.age_s):
        alarms.append(f"it has said nothing for {seen.age_s:.0f} s")
    elif seen.age_s < -silence_s(status):
        alarms.append(f"its clock is {-seen.age_s:.0f} s ahead: whether it runs cannot be told")
    alarms += [f"{name} is {behind} seqs behind" for name, behind in lag.items() if behind > lag_max]
    if status.failed_reads:
        alarms.append(f"{status.failed_reads} of {status.reads} reads of its mounts failed")
    if status.disk_bytes and status.disk_free_bytes < status.disk_bytes * _DISK_FREE_MIN:
        alarms.append(f"its disk has {100 * status.disk_free_bytes / status.disk_bytes:.1f} % left")
    alarms += [
        f"{key}: {found.errors} of {found.requests} requests ended in an error"
        for key, found in seen.registrations.items()
        if found.errors > max(3, found.requests // 100)
    ]
    return Row(seen, lag, alarms)
