"""What a render server counts, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """Counters and gauges; safe between threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "boxlink_render_answers", "Answers under /tiles/, by status.", ["status"], registry=self._registry
        )
        self._tiles = Counter(
            "boxlink_render_tiles", "Tiles drawn, from covers or from tiles.", ["source"], registry=self._registry
        )
        self._text_covers = Counter(
            "boxlink_render_text_covers",
            "Covers whose bytes are no picture, counted each time one is drawn as text.",
            ["reason"],
            registry=self._registry,
        )
        self._seq = Gauge("boxlink_render_seq", "Seq of the current wall.", registry=self._registry)
        self._covers = Gauge("boxlink_render_covers", "Covers on the current wall.", registry=self._registry)

    def answer(self, status: int) -> None:
        self._answers.labels(str(status)).inc()

    def answers(self) -> tuple[int, int]:
        """How many there were, and how many of those said 5xx."""
        counts = {
            sample.labels["status"]: int(sample.value)
            for family in self._answers.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        return sum(counts.values()), sum(count for status, count in counts.items() if status.startswith("5"))

    def tile(self, source: str) -> None:
        self._tiles.labels(source).inc()

    def text_cover(self, reason: str) -> None:
        self._text_covers.labels(reason).inc()

    def wall(self, seq: int, cover_count: int) -> None:
        self._seq.set(seq)
        self._covers.set(cover_count)

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; 0 where it was never counted."""
        return self._registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
