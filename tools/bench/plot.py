"""A plot of a benchmark's result: how much longer each tool took than boxlink, step by step."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tools.bench.sample import OURS, STEPS, Result

_BAR = 0.8  # of the room of a step, all tools together


def plot(result: Result, path: Path) -> None:
    """Write an SVG: bars of the median ratio with its least and most, on a logarithmic axis; 1 is boxlink."""
    mpl.rcParams["svg.hashsalt"] = "boxlink"  # the same result gives the same bytes
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.add_subplot()
    others = [tool for tool in result.tools if tool != OURS]
    width = _BAR / max(len(others), 1)
    for index, tool in enumerate(others):
        done = [number for number, step in enumerate(STEPS) if result.of(tool, step)]
        ratios = [result.ratios(tool, STEPS[number], lambda sample: sample.seconds) for number in done]
        medians = [statistics.median(found) for found in ratios]
        reach = [
            [median - min(found) for median, found in zip(medians, ratios, strict=True)],
            [max(found) - median for median, found in zip(medians, ratios, strict=True)],
        ]
        places = [step + (index - (len(others) - 1) / 2) * width for step in done]
        bars = axes.bar(places, [median - 1 for median in medians], width, bottom=1, label=tool, yerr=reach)
        axes.bar_label(bars, [f"{median:.1f}" for median in medians], fontsize=7, padding=2)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(STEPS)), STEPS)
    axes.set_ylabel("seconds, in boxlink's")
    axes.set_title(f"{result.shape}; {result.store}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
