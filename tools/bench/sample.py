"""What is measured, as plain values: one sample for each command of a tool, all of a shape on a store together."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

STEPS = ("publish", "unchanged", "small change", "restore", "one file", "one folder")
OURS = "boxlink"


@dataclass(frozen=True)
class Sample:
    """One command. ``unwritten_seconds``: what ``sync`` took right after it, for bytes it left to the kernel.

    ``stored_bytes``: what the repository takes afterwards. Requests and bytes up and down only where the store is
    an S3 server.
    """

    tool: str
    step: str
    round: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    unwritten_seconds: float
    stored_bytes: int
    requests: dict[str, int] = field(default_factory=dict)
    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True)
class Result:
    """All samples of one shape on one kind of store, and what the machine itself took in each round (seconds)."""

    shape: str
    store: str
    machine: str
    date: str
    versions: dict[str, str]
    samples: list[Sample]
    floors: list[dict[str, float]]

    @property
    def tools(self) -> list[str]:
        return list(self.versions)

    def of(self, tool: str, step: str) -> list[Sample]:
        """A tool's samples of a step, by round."""
        found = (sample for sample in self.samples if (sample.tool, sample.step) == (tool, step))
        return sorted(found, key=lambda sample: sample.round)

    def median(self, tool: str, step: str, value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, self.of(tool, step)))

    def ratios(self, tool: str, step: str, value: Callable[[Sample], float]) -> list[float]:
        """Of each round: a tool's value in ours. Pairs, so that what slows a whole round does not count."""
        pairs = zip(self.of(tool, step), self.of(OURS, step), strict=True)
        return [value(other) / max(value(ours), 1e-9) for other, ours in pairs]
