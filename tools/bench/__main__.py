"""boxlink beside whatever of restic, borg, kopia, rclone and s5cmd is installed.

    make bench                                    20 KB files, large files
    make bench ARGS="--files 50000 --large 8 --tree DIR"
    make bench ARGS="--s3-ms 20 --files 50000 --large 0"    behind a real S3 server 20 ms away

Each round runs every tool once, in turn, on the same data, in fresh repositories on the same disk; what is printed are
medians and ratios to boxlink, and what the machine itself takes for the same files. Nothing else should run meanwhile.
All files were just written, so they are in the page cache; caches of a tool's own are kept between its steps, but for
those that read, which another machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.bench.data import Shape
from tools.bench.floors import floors
from tools.bench.latency import Delayed, delayed
from tools.bench.rivals import Run, Tool, installed

STEPS = ("publish", "unchanged", "small change", "restore", "one file", "one folder")


@dataclass
class Figures:
    """Of one tool on one shape, by step: seconds and requests of each round; and the largest process of all."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    requests: dict[str, list[int]] = field(default_factory=lambda: {step: [] for step in STEPS})
    stored_bytes: list[tuple[int, int]] = field(default_factory=list)  # after the first publish, after the change
    peak_bytes: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="number of 20 KB files (default: %(default)s)")
    parser.add_argument("--large", type=int, default=4, help="number of 128 MB files (default: %(default)s)")
    parser.add_argument("--tree", type=Path, help="a source tree to copy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3-ms", type=float, help="on a real S3 server behind so many milliseconds")
    parser.add_argument("--only", nargs="*", help="only these tools, beside boxlink")
    parser.add_argument("--place", type=Path, help="where data and repositories go (default: a temporary directory)")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="boxlink-bench-", dir=arguments.place))
    found = installed(is_s3=arguments.s3_ms is not None)
    tools = [tool for tool in found if arguments.only is None or tool.name in ("boxlink", *arguments.only)]
    print(f"machine: {platform.platform()}, {len(os.sched_getaffinity(0))} processors, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")
    print(f"date: {time.strftime('%Y-%m-%d')}; rounds: {arguments.rounds}")
    for tool in tools:
        print(f"{tool.name}: {tool.version()}")
    shapes = [
        *([Shape("small", arguments.files)] if arguments.files else []),
        *([Shape("large", arguments.large)] if arguments.large else []),
        *([Shape("tree", origin=arguments.tree)] if arguments.tree else []),
    ]
    try:
        for shape in shapes:
            with far_store(place, arguments.s3_ms) as far:
                measure(place, shape, tools, arguments.rounds, far)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


@contextmanager
def far_store(place: Path, milliseconds: float | None) -> Iterator[Delayed | None]:
    if milliseconds is None:
        yield None
        return
    from tools import s3server

    with ExitStack() as stack:
        server = stack.enter_context(s3server.running("bench", place))
        yield stack.enter_context(delayed(server.endpoint, milliseconds / 1000))


def measure(place: Path, shape: Shape, tools: list[Tool], rounds: int, far: Delayed | None) -> None:
    figures = {tool.name: Figures() for tool in tools}
    floor: dict[str, float] = {}
    for number in range(rounds):
        for tool in tools:
            source = place / "source"
            for path in (source, place / "repository"):
                shutil.rmtree(path, ignore_errors=True)
            shape.make(source)
            time.sleep(0.2)  # so that no file is younger than a clock tick
            floor = floor or floors(source, place)
            tool.prepare(place / "repository", far.endpoint if far else "", f"{tool.name}{number}")
            one_round(place, shape, tool, number, far, figures[tool.name])
    show(shape, figures, floor)


def one_round(place: Path, shape: Shape, tool: Tool, number: int, far: Delayed | None, figures: Figures) -> None:
    source, target = place / "source", place / "target"
    first_bytes = 0
    for step in STEPS:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        if step == "small change":
            first_bytes = disk_bytes(place / "repository/store")
            shape.change(source, seed=number)
            time.sleep(0.2)
        if step in ("restore", "one file", "one folder"):
            tool.forget()
        before = far.requests if far else 0
        run = do(step, tool, shape, source, target)
        figures.seconds[step].append(run.seconds)
        figures.requests[step].append(far.requests - before if far else 0)
        figures.peak_bytes = max(figures.peak_bytes, run.peak_bytes)
        check(step, shape, source, target)
    figures.stored_bytes.append((first_bytes, disk_bytes(place / "repository/store")))


def do(step: str, tool: Tool, shape: Shape, source: Path, target: Path) -> Run:
    match step:
        case "restore":
            return tool.restore(source, target)
        case "one file":
            return tool.one_file(source, shape.one_file(source), target)
        case "one folder":
            return tool.one_folder(source, shape.one_folder(source), target)
        case _:
            return tool.publish(source)


def check(step: str, shape: Shape, source: Path, target: Path) -> None:
    """A tool that did not do it was not fast."""
    path = shape.one_file(source)
    if step == "one file" and target.read_bytes() != (source / path).read_bytes():
        raise SystemExit("bench: that file is not what was published")
    if step in ("restore", "one folder"):
        found = [item for item in target.rglob(Path(path).name) if item.is_file()]
        if not found or found[0].read_bytes() != (source / path).read_bytes():
            raise SystemExit(f"bench: {step} did not bring {path}")


def disk_bytes(path: Path) -> int:
    """What a directory takes on the disk, by ``du``; 0 where there is none."""
    if not path.exists():
        return 0
    return int(subprocess.run(["du", "-sb", path], capture_output=True, check=True).stdout.split()[0])


def show(shape: Shape, figures: dict[str, Figures], floor: dict[str, float]) -> None:
    what = {"small": "files of 20 KB", "large": "files of 128 MB", "tree": "a source tree"}[shape.name]
    print(f"\n{shape.count or ''} {what}: median seconds (ratio to boxlink)\n")
    print(f"| tool | {' | '.join(STEPS)} | largest process | stored, and after the change |")
    print("|---" * (len(STEPS) + 3) + "|")
    ours = {step: statistics.median(times) for step, times in figures["boxlink"].seconds.items()}
    for name, found in figures.items():
        cells = [cell(found, step, ours[step]) for step in STEPS]
        first, last = found.stored_bytes[-1]
        stored = f"{first / 1e6:.0f} + {(last - first) / 1e6:.0f} MB" if last else ""
        print(f"| {name} | {' | '.join(cells)} | {found.peak_bytes / 1e6:.0f} MB | {stored} |")
    print("\nfloors: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in floor.items()))
    plain = {name: {"seconds": found.seconds, "requests": found.requests} for name, found in figures.items()}
    print(json.dumps({"shape": shape.name, "figures": plain, "floors": floor}), file=sys.stderr)
    sys.stdout.flush()


def cell(found: Figures, step: str, ours: float) -> str:
    median = statistics.median(found.seconds[step])
    requests = int(statistics.median(found.requests[step]))
    return f"{median:.2f} ({median / ours:.2f})" + (f", {requests} requests" if requests else "")


if __name__ == "__main__":
    sys.exit(main())
