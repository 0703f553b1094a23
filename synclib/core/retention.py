"""Which seqs are kept. By default all of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """How many of the newest seqs to keep, and of how many days, weeks (ISO 8601) and months (UTC) the last one."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @property
    def keeps_all(self) -> bool:
        return not (self.last or self.daily or self.weekly or self.monthly)


def kept_seqs(seqs: Iterable[tuple[int, int]], retention: Retention) -> set[int]:
    """Those that are kept of (seq, published_at_ns); the newest always is."""
    newest_first = sorted(seqs, reverse=True)
    if retention.keeps_all:
        return {seq for seq, _ in newest_first}
    kept = {seq for seq, _ in newest_first[: max(1, retention.last)]}
    periods = [("%Y-%m-%d", retention.daily), ("%G-%V", retention.weekly), ("%Y-%m", retention.monthly)]
    for pattern, count in periods:
        kept.update(_last_of_each(newest_first, pattern, count))
    return kept


def why_kept(
    kept: Iterable[int], newest: int, by_rule: Container[int], tagged: Container[int], *, keeps_all: bool
) -> dict[str, int]:
    """How many seqs are kept for which reason, each for the first that holds: ``all`` (no rule lets any go),
    ``newest``, ``rule``, ``tag``, ``lease``; those without any are left out."""
    counts = dict.fromkeys(("all", "newest", "rule", "tag", "lease"), 0)
    for seq in kept:
        if keeps_all:
            counts["all"] += 1
        elif seq == newest:
            counts["newest"] += 1
        else:
            counts["rule" if seq in by_rule else "tag" if seq in tagged else "lease"] += 1
    return {reason: count for reason, count in counts.items() if count}


def _last_of_each(newest_first: list[tuple[int, int]], pattern: str, count: int) -> Iterator[int]:
    seen: set[str] = set()
    for seq, at_ns in newest_first:
        period = datetime.fromtimestamp(at_ns / 1e9, UTC).strftime(pattern)
        if period not in seen:
            if len(seen) == count:
                return
            seen.add(period)
            yield seq
