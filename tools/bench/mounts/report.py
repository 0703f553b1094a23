"""The table of a run: seconds, and each tool's in boxlink's of the same round."""

from __future__ import annotations

import statistics

OURS = "boxlink"


def report(head: str, tools: list[str], rounds: list[dict[str, dict[str, float]]]) -> str:
    """Markdown. A cell: the median of the seconds (the median of the ratios to ours: least to most)."""
    lines = list(rounds[0][tools[0]])
    rows = [f"| what | {' | '.join(tools)} | ours in the best other |", "|---" * (len(tools) + 2) + "|"]
    for line in lines:
        cells = [_cell(tool, line, rounds) for tool in tools]
        rows.append(f"| {line} | {' | '.join(cells)} | {_best(tools, line, rounds)} |")
    return "\n".join(
        [head, "", "Seconds: median (ratio to boxlink's in the same round: median, least to most)", "", *rows, ""]
    )


def _cell(tool: str, line: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    median = f"{statistics.median(found[tool][line] for found in rounds):.3f}"
    if tool == OURS or OURS not in rounds[0]:
        return median
    ratios = sorted(found[tool][line] / found[OURS][line] for found in rounds)
    return f"{median} (**{statistics.median(ratios):.2f}**: {ratios[0]:.2f} to {ratios[-1]:.2f})"


def _best(tools: list[str], line: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    """How many times ours goes into the best of the others, round by round: over 1 we are sooner."""
    others = [tool for tool in tools if not tool.startswith(OURS)]
    if not others or OURS not in rounds[0]:
        return ""
    return f"{statistics.median(min(found[tool][line] for tool in others) / found[OURS][line] for found in rounds):.2f}"
