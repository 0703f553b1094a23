"""Counts of what happens, as plain numbers; they become Prometheus samples only when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.backends import Backend, Backends
from proxy.cache import Cache
from proxy.core.health import State
from proxy.memo import Memo


@dataclass(slots=True)
class Counters:
    """Since the start. ``answers`` leaves out the hits that :class:`~proxy.memo.Memo` counts itself."""

    answers: Counter[str] = field(default_factory=Counter)  # by what the cache did
    statuses: Counter[int] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # requests that were not forwarded, by reason
    ignored: Counter[str] = field(default_factory=Counter)  # registrations, by reason
    polls: Counter[str] = field(default_factory=Counter)  # by result
    collapsed: int = 0
    retries: int = 0
    unknown_walls: int = 0
    truncated: int = 0
    connections: int = 0
    turned_away: int = 0


class ProxyCollector(Collector):
    """Reads the counts of a running proxy."""

    def __init__(
        self, counters: Counters, memo: Memo, cache: Cache, backends: Backends, open_connections: Callable[[], int]
    ) -> None:
        self._counters = counters
        self._memo = memo
        self._cache = cache
        self._backends = backends
        self._open_connections = open_connections

    def collect(self) -> Iterator[Metric]:
        counters, cache = self._counters, self._cache
        answers = counters.answers + Counter(hit=self._memo.hits)
        statuses = counters.statuses + Counter({200: self._memo.hits})
        yield _counter("answers", "Answers, by what the cache did", "cache", answers.items())
        yield _counter("responses", "Answers, by status", "status", statuses.items())
        yield _counter("refused", "Requests not forwarded, by reason", "reason", counters.refused.items())
        yield _counter("registrations_ignored", "Registrations ignored", "reason", counters.ignored.items())
        yield _counter("polls", "Polls of the store", "result", counters.polls.items())
        for name, text, value in (
            ("collapsed", "Requests that waited for another one's answer", counters.collapsed),
            ("retries", "Requests tried once more on another backend", counters.retries),
            ("unknown_walls", "Answers of backends that did not know a wall", counters.unknown_walls),
            ("truncated", "Answers that broke off within the body", counters.truncated),
            ("connections", "Connections accepted", counters.connections),
            ("connections_refused", "Connections over the limit", counters.turned_away),
            ("cache_evictions", "Stored answers that made room for others", cache.evictions),
        ):
            yield CounterMetricFamily(f"boxlink_proxy_{name}", text, value=value)
        for name, text, value in (
            ("connections_open", "Connections of clients", self._open_connections()),
            ("cache_bytes", "Bytes of stored answers", cache.bytes_used),
            ("cache_bytes_max", "Bytes that stored answers may take", cache.bytes_max),
            ("cache_objects", "Stored answers", len(cache)),
            ("store_readable", "1 while the store of registrations can be read", self._backends.is_store_readable),
        ):
            yield GaugeMetricFamily(f"boxlink_proxy_{name}", text, value=value)
        states = Counter(backend.health.state.value for backend in self._backends)
        backends = GaugeMetricFamily("boxlink_proxy_backends", "Backends, by state", labels=["state"])
        for state in State:
            backends.add_metric([state.value], states[state.value])
        yield backends
        yield from self._of_backends()

    def _of_backends(self) -> Iterator[Metric]:
        figures: tuple[tuple[type[Metric], str, str, Callable[[Backend], float]], ...] = (
            (CounterMetricFamily, "backend_requests", "Requests sent to a backend", lambda b: b.requests),
            (CounterMetricFamily, "backend_errors", "Requests that failed, or were answered 5xx", lambda b: b.errors),
            (GaugeMetricFamily, "backend_in_flight", "Requests under way", lambda b: b.in_flight),
            (GaugeMetricFamily, "backend_up", "1 while a backend takes requests", lambda b: b.takes_requests),
            (
                GaugeMetricFamily,
                "backend_p99_seconds",
                "Of late answers' first byte",
                lambda b: (b.p99_ms() or 0) / 1000,
            ),
        )
        for kind, name, text, figure in figures:
            family = kind(f"boxlink_proxy_{name}", text, labels=["address", "state"])  # type: ignore[call-arg]
            for backend in self._backends:
                family.add_metric([backend.address, backend.health.state.value], figure(backend))  # type: ignore[attr-defined]
            yield family


def exposition(collector: Collector) -> bytes:
    """The counts in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def _counter(name: str, text: str, label: str, values: Iterable[tuple[object, int]]) -> Metric:
    family = CounterMetricFamily(f"boxlink_proxy_{name}", text, labels=[label])
    for value, count in values:
        family.add_metric([str(value)], count)
    return family
