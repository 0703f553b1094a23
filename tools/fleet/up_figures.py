"""What ``boxlink up`` knows of its processes, in Prometheus's text format and as a word on its health."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.admin import Page, Pages, json_page
from synclib.clock import Clock
from tools.fleet.release_seen import Seen, last_seen
from tools.fleet.supervisor import Figures


class UpPages:
    """``release``: the directory of the release that runs, if one does (DIR/NAME/SEQ); ``is_following``: whether one of
    the processes waits for a newer one."""

    def __init__(self, figures: Sequence[Figures], clock: Clock, release: Path | None, *, is_following: bool) -> None:
        self._figures, self._clock, self._release = figures, clock, release
        self._is_following = is_following
        self._began = clock.wall_ns() / 1e9

    def pages(self) -> Pages:
        return {b"/healthz": self._health, b"/metrics": self._metrics}

    def _seen(self) -> Seen | None:
        """What the process that follows the release's channel said last."""
        return last_seen(self._release.parent) if self._is_following and self._release is not None else None

    def _health(self) -> Page:
        """200 while every process runs, else 503 with those that do not and the code that each ended with."""
        down = {one.name: one.last_exit for one in self._figures if not one.is_running}
        seen = self._seen()
        told = {"down": down, "release_error": "" if seen is None else seen.error}
        return json_page(told, 503 if down else 200)

    def _metrics(self) -> Page:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_UpCollector(list(self._samples())))
        return 200, "text/plain; version=0.0.4; charset=utf-8", generate_latest(registry)

    def _samples(self) -> Iterator[Metric]:
        now = self._clock.monotonic()
        yield GaugeMetricFamily("boxlink_up_start_time_seconds", "When it began, since 1970.", value=self._began)
        of_each: tuple[tuple[type[Metric], str, str, Callable[[Figures], float | None]], ...] = (
            (GaugeMetricFamily, "running", "1 while it runs.", lambda one: one.is_running),
            (CounterMetricFamily, "restarts", "Starts after its first one.", lambda one: max(0, one.starts - 1)),
            (
                GaugeMetricFamily,
                "last_exit_code",
                "Minus the signal's number where one did.",
                lambda one: one.last_exit,
            ),
            (
                GaugeMetricFamily,
                "uptime_seconds",
                "Since its last start; 0 while it does not run.",
                lambda one: now - one.began if one.is_running else 0.0,
            ),
        )
        for kind, name, text, figure in of_each:
            family = kind(f"boxlink_up_process_{name}", text, labels=["process"])  # type: ignore[call-arg]
            for one in self._figures:
                if (value := figure(one)) is not None:
                    family.add_metric([one.name], value)  # type: ignore[attr-defined]
            yield family
        yield from self._of_release()

    def _of_release(self) -> Iterator[Metric]:
        if self._release is None or not self._release.name.isdecimal():
            return
        running = int(self._release.name)
        yield GaugeMetricFamily("boxlink_up_release_seq", "Seq of the release that runs.", value=running)
        if (seen := self._seen()) is not None:
            yield GaugeMetricFamily("boxlink_up_release_wanted_seq", "Seq that its channel names.", value=seen.wanted)
            text = "1 while that is not taken, for a reason that its log says."
            yield GaugeMetricFamily("boxlink_up_release_failing", text, value=bool(seen.error))


class _UpCollector(Collector):
    def __init__(self, samples: Sequence[Metric]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        yield from self._samples
