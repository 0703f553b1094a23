"""What a node's daemon counts of its own work, for whoever watches it from another thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Followed:
    """One dataset. Times are monotonic; None: never. ``errors``: rounds that failed, by kind."""

    seq: int = 0  # that stands here; 0: none
    is_restored: bool = False  # every byte of it, as files
    head_seq: int = 0  # of what the node is to stand at, as the store said last; 0: not known
    published_at_ns: int = 0  # of that seq, wall time
    polled_at: float | None = None  # when the store last said what the node is to stand at
    behind_since: float | None = None  # since when another seq is wanted than stands here
    failed_at: float | None = None  # since when every round fails
    remounts: int = 0  # mounts that had ended and were made anew
    errors: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """All of it at one moment. ``round_at``: when the daemon's loop last came round."""

    now: float
    round_at: float
    datasets: Mapping[str, Followed]
    log_backlog_bytes: int
    log_dropped_bytes: int
    log_segments: int
