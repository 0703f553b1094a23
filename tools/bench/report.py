"""Tables of a benchmark's result, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from tools.bench.sample import OURS, STEPS, Result, Sample


def report(result: Result) -> str:
    """Everything that was measured: seconds, processor, memory, requests, bytes, floors."""
    parts = [
        f"## {result.shape}; {result.store}",
        f"{result.date}. {result.machine}. {_rounds(result)} rounds, the tools in turn. "
        + "; ".join(f"{tool}: {version.removeprefix(f'{tool} ')}" for tool, version in result.versions.items()),
        "Seconds: median (ratio to boxlink's in the same round: median, least to most)",
        _table(result, lambda tool, step: _timed(result, tool, step, lambda sample: sample.seconds)),
        "Seconds until what was published is durable, the command and the `sync` after it: median (ratio)",
        _table(result, lambda tool, step: _timed(result, tool, step, _durable_s), STEPS[:3]),
        "Processor seconds: median (ratio)",
        _table(result, lambda tool, step: _timed(result, tool, step, lambda sample: sample.cpu_seconds)),
        "Memory of all processes, MB",
        _table(result, lambda tool, step: f"{result.median(tool, step, lambda sample: sample.peak_bytes) / 1e6:.0f}"),
    ]
    if any(sample.requests for sample in result.samples):
        parts += [
            "Requests by verb",
            _table(result, lambda tool, step: _requests(result.of(tool, step))),
            "MB up, down",
            _table(result, lambda tool, step: _bytes(result, tool, step)),
        ]
    parts += [
        "Stored, MB; and the seconds that `sync` took right after, for what a tool had not made durable",
        _kept(result),
        _floors(result),
    ]
    return "\n\n".join(parts) + "\n"


def _rounds(result: Result) -> int:
    return len({sample.round for sample in result.samples})


def _durable_s(sample: Sample) -> float:
    return sample.seconds + sample.unwritten_seconds


def _table(result: Result, cell: Callable[[str, str], str], steps: Sequence[str] = STEPS) -> str:
    lines = [f"| tool | {' | '.join(steps)} |", "|---" * (len(steps) + 1) + "|"]
    for tool in result.tools:
        cells = [cell(tool, step) if result.of(tool, step) else "left out" for step in steps]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _timed(result: Result, tool: str, step: str, value: Callable[[Sample], float]) -> str:
    median = f"{result.median(tool, step, value):.2f}"
    if tool == OURS:
        return median
    ratios = result.ratios(tool, step, value)
    spread = f": {min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else ""
    return f"{median} (**{statistics.median(ratios):.2f}**{spread})"


def _requests(samples: list[Sample]) -> str:
    """Of the median sample by their number."""
    middle = sorted(samples, key=lambda sample: sum(sample.requests.values()))[len(samples) // 2]
    return ", ".join(f"{count} {verb}" for verb, count in middle.requests.items()) or "none"


def _bytes(result: Result, tool: str, step: str) -> str:
    up = result.median(tool, step, lambda sample: sample.up_bytes)
    down = result.median(tool, step, lambda sample: sample.down_bytes)
    return f"{up / 1e6:.2f}, {down / 1e6:.2f}"


def _kept(result: Result) -> str:
    lines = ["| tool | stored | after the change | sync after publish | sync after restore |", "|---|---|---|---|---|"]
    for tool in result.tools:
        first = result.median(tool, "publish", lambda sample: sample.stored_bytes)
        more = result.median(tool, "small change", lambda sample: sample.stored_bytes) - first
        waits = [
            f"{result.median(tool, step, lambda sample: sample.unwritten_seconds):.2f}" if result.of(tool, step) else ""
            for step in ("publish", "restore")
        ]
        lines.append(f"| {tool} | {first / 1e6:.1f} | +{more / 1e6:.2f} | {waits[0]} | {waits[1]} |")
    return "\n".join(lines)


def _floors(result: Result) -> str:
    """What the machine takes for the same files, and boxlink in it, round by round."""
    steps = {
        "read + sha256": "publish",
        "scandir + stat": "unchanged",
        "tar xf": "restore",
        "cp -r": "restore",
        "interpreter start": "one file",
    }
    lines = ["| floor | seconds | boxlink in it |", "|---|---|---|"]
    for name in result.floors[0]:
        seconds = [floor[name] for floor in result.floors]
        step = steps[name]
        times = [sample.seconds / floor for sample, floor in zip(result.of(OURS, step), seconds, strict=True)]
        lines.append(f"| {name} | {statistics.median(seconds):.3f} | {step}: {statistics.median(times):.2f} |")
    return "\n".join(lines)
