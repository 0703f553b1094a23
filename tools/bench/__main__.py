"""boxlink beside whatever of restic, borg, kopia and rclone is installed: ``make bench [ARGS="--files 20000"]``.

Each round runs every tool once, in turn, on the same data, in fresh repositories on the same disk; what is printed are
medians and ratios to boxlink. Nothing else should run meanwhile. All files were just written, so they are in the page
cache; caches of a tool's own are kept between its steps, as a user would keep them.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tools.bench.data import change_one_percent, make_large_files, make_small_files
from tools.bench.rivals import Tool, installed

STEPS = ("publish", "unchanged", "one percent changed", "restore")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="number of 20 KB files (default: %(default)s)")
    parser.add_argument("--large", type=int, default=4, help="number of 128 MB files (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="only these tools, beside boxlink")
    parser.add_argument("--place", type=Path, help="where data and repositories go (default: a temporary directory)")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="boxlink-bench-", dir=arguments.place))
    tools = [
        tool for tool in installed() if tool.name == "boxlink" or arguments.only is None or tool.name in arguments.only
    ]
    print(f"machine: {platform.platform()}, {len_cpus()} processors, Python {platform.python_version()}")
    print(f"date: {time.strftime('%Y-%m-%d')}; rounds: {arguments.rounds}")
    for tool in tools:
        print(f"{tool.name}: {tool.version()}")
    results: dict[str, object] = {}
    try:
        if arguments.files:
            results["small"] = measure(place, "20 KB files", tools, arguments.rounds, arguments.files, is_large=False)
        if arguments.large:
            results["large"] = measure(place, "128 MB files", tools, arguments.rounds, arguments.large, is_large=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps(results), file=sys.stderr)
    return 0


def len_cpus() -> int:
    import os

    return len(os.sched_getaffinity(0))


def measure(
    place: Path, title: str, tools: list[Tool], rounds: int, count: int, *, is_large: bool
) -> dict[str, dict[str, list[float]]]:
    seconds: dict[str, dict[str, list[float]]] = {tool.name: {step: [] for step in STEPS} for tool in tools}
    memory: dict[str, int] = {tool.name: 0 for tool in tools}
    for number in range(rounds):
        for tool in tools:
            source, target = place / "source", place / "target"
            for path in (source, target, place / "repository"):
                shutil.rmtree(path, ignore_errors=True)
            make_large_files(source, count) if is_large else make_small_files(source, count)
            time.sleep(0.2)  # so that no file is younger than a clock tick
            tool.prepare(place / "repository")
            for step in STEPS:
                if step == "one percent changed":
                    change_one_percent(source, seed=number)
                    time.sleep(0.2)
                run = tool.restore(source, target) if step == "restore" else tool.publish(source)
                seconds[tool.name][step].append(run.seconds)
                memory[tool.name] = max(memory[tool.name], run.peak_bytes)
    show(title, count, seconds, memory)
    return seconds


def show(title: str, count: int, seconds: dict[str, dict[str, list[float]]], memory: dict[str, int]) -> None:
    print(f"\n{count} x {title}: median seconds (ratio to boxlink)\n")
    print(f"| tool | {' | '.join(STEPS)} | largest process |")
    print("|---" * (len(STEPS) + 2) + "|")
    ours = {step: statistics.median(times) for step, times in seconds["boxlink"].items()}
    for name, steps in seconds.items():
        cells = [
            f"{statistics.median(steps[step]):.2f} ({statistics.median(steps[step]) / ours[step]:.2f})"
            for step in STEPS
        ]
        print(f"| {name} | {' | '.join(cells)} | {memory[name] / 1e6:.0f} MB |")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
