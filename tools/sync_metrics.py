"""The figures of ``boxlink sync`` and of the mounts below its data directory, in Prometheus's text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from synclib.engine.node_figures import Followed, NodeFigures
from synclib.store.meter import Meter
from tools.mount_metrics import collector

_Figure = Callable[[Followed, float], float | None]
# Of each dataset; nothing is said where it is not known.
_GAUGES: tuple[tuple[str, str, _Figure], ...] = (
    ("seq", "Seq that stands here; 0: none", lambda one, _: one.seq),
    ("head_seq", "Seq that is to stand here, as the store said last", lambda one, _: one.head_seq or None),
    ("head_age_seconds", "Since that seq was published", lambda one, wall: _since(wall, one.published_at_ns / 1e9)),
)
_TIMES: tuple[tuple[str, str, _Figure], ...] = (
    (
        "poll_age_seconds",
        "Since the store last said what is to stand here",
        lambda one, now: _since(now, one.polled_at),
    ),
    ("lag_seconds", "Since when another seq is wanted than stands here", lambda one, now: _for(now, one.behind_since)),
    ("failing_seconds", "Since when every round has failed", lambda one, now: _for(now, one.failed_at)),
)


@dataclass(frozen=True)
class Seen:
    """All that one scrape tells. ``wall``: now, in seconds since 1970; ``mounts``: as `boxlink status` has them."""

    figures: NodeFigures
    meter: Meter
    mounts: Sequence[dict[str, Any]]
    wall: float
    started_at: float  # wall time
    late: Sequence[str]


class SyncCollector(Collector):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        seen, figures = self._seen, self._seen.figures
        yield from self._of_datasets()
        yield _gauge("start_time_seconds", "When this process began, since 1970", seen.started_at)
        yield _gauge("round_age_seconds", "Since the daemon's loop last came round", figures.now - figures.round_at)
        yield _gauge("stuck", "Pieces of work that have not advanced in their time", len(seen.late))
        yield _counter("requests", "Requests to the store", "verb", seen.meter.requests)
        moved = {"up": seen.meter.bytes_up, "down": seen.meter.bytes_down}
        yield _counter("bytes", "Bytes to the store and from it", "direction", moved)
        errors: Counter[str] = Counter()
        for one in figures.datasets.values():
            errors.update(dict(one.errors))
        yield _counter("errors", "Rounds of datasets that failed", "kind", errors)
        yield _gauge("log_backlog_bytes", "Bytes of log files that wait to go up", figures.log_backlog_bytes)
        for name, text, value in (
            ("log_dropped_bytes", "Bytes of log files that were given up", figures.log_dropped_bytes),
            ("log_segments", "Segments of log files that went up", figures.log_segments),
        ):
            yield CounterMetricFamily(f"boxlink_sync_{name}", f"{text}.", value=value)

    def _of_datasets(self) -> Iterator[Metric]:
        seen, datasets = self._seen, self._seen.figures.datasets
        for figures, now in ((_GAUGES, seen.wall), (_TIMES, seen.figures.now)):
            for name, text, figure in figures:
                family = GaugeMetricFamily(f"boxlink_sync_{name}", f"{text}.", labels=["dataset"])
                for dataset, one in datasets.items():
                    if (value := figure(one, now)) is not None:
                        family.add_metric([dataset], value)
                yield family
        hydrated = GaugeMetricFamily("boxlink_sync_hydrated_ratio", "What part of it is here.", labels=["dataset"])
        remounts = CounterMetricFamily(
            "boxlink_sync_remounts", "Mounts that had ended and were made anew.", labels=["dataset"]
        )
        # Of a dataset that was switched while files were open two seqs are mounted: the newer one is meant.
        rows = sorted(seen.mounts, key=lambda row: int(row["seq"]))
        here = {row["dataset"]: row["hydrated_percent"] / 100 for row in rows if "hydrated_percent" in row}
        for dataset, one in datasets.items():
            ratio = 1.0 if one.is_restored else here.get(dataset)
            if ratio is not None:
                hydrated.add_metric([dataset], ratio)
            remounts.add_metric([dataset], one.remounts)
        yield from (hydrated, remounts)


def exposition(seen: Seen) -> bytes:
    """One scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SyncCollector(seen))
    registry.register(collector(seen.mounts))
    return generate_latest(registry)


def _since(now: float, then: float | None) -> float | None:
    """Nothing where it never was."""
    return max(0.0, now - then) if then else None


def _for(now: float, since: float | None) -> float:
    """0 where it is not so."""
    return 0.0 if since is None else max(0.0, now - since)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"boxlink_sync_{name}", f"{text}.", value=value)


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"boxlink_sync_{name}", f"{text}, by {label}.", labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
