"""The figures of a node's mounts in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Name, text, which member of a row of `boxlink status` it is, and what it is divided by.
_GAUGES = (
    ("up", "Whether it is served, and answers", "up", 1),
    ("seq", "Seq that is mounted", "seq", 1),
    ("seq_age_seconds", "How long ago the seq was published", "age_s", 1),
    ("cache_bytes", "What the cache takes on the disk", "cache_bytes", 1),
    ("cache_bytes_max", "The limit of the cache, where it has one", "cache_bytes_max", 1),
    ("hydrated_ratio", "What part of its dataset is here", "hydrated_percent", 100),
    ("fault_p50_seconds", "Half of the latest faults took at most that long", "fault_p50_ms", 1000),
    ("fault_p99_seconds", "All but a hundredth of the latest faults took at most that long", "fault_p99_ms", 1000),
)
_COUNTERS = (
    ("reads", "Reads that the kernel asked for"),
    ("hits", "Reads answered from the cache"),
    ("faults", "Reads that had to wait for the store"),
    ("errors", "Reads that ended in an error"),
    ("fetched_chunks", "Chunks fetched from the store"),
    ("fetched_bytes", "Bytes fetched from the store"),
    ("volume_chunks", "Chunks taken from a volume"),
    ("volume_bytes", "Bytes taken from a volume"),
    ("evicted_chunks", "Chunks evicted"),
    ("evicted_bytes", "Bytes evicted"),
    ("unkept_chunks", "Chunks handed out that found no room in the cache"),
    ("damaged_chunks", "Chunks in the cache that were damaged, and forgotten"),
    ("restarts", "Workers that died and were replaced"),
)
_LABELS = ("dataset", "directory")
Row = Mapping[str, object]


class _Mounts(Collector):
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = [{**row, "up": int(row["state"] == "serving")} for row in rows]

    def collect(self) -> Iterator[Metric]:
        for name, text, member, unit in _GAUGES:
            gauge = GaugeMetricFamily(f"boxlink_mount_{name}", f"{text}.", labels=_LABELS)
            for labels, value in self._values(member):
                gauge.add_metric(labels, value / unit)
            yield gauge
        for name, text in _COUNTERS:
            counter = CounterMetricFamily(f"boxlink_mount_{name}", f"{text}, by this worker.", labels=_LABELS)
            for labels, value in self._values(name):
                counter.add_metric(labels, value)
            yield counter

    def _values(self, member: str) -> Iterator[tuple[list[str], float]]:
        """Of each mount that tells it."""
        for row in self._rows:
            value = row.get(member)
            if isinstance(value, int | float):
                yield [str(row[label]) for label in _LABELS], value


def collector(rows: Sequence[Row]) -> Collector:
    """``rows``: the mounts as `boxlink status --json` has them."""
    return _Mounts(rows)


def exposition(rows: Sequence[Row]) -> str:
    """As :func:`collector`, in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector(rows))
    return generate_latest(registry).decode()
