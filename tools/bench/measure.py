"""Every tool in turn, round after round, on the same data: what ``make bench`` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.bench.command import Run
from tools.bench.data import Shape
from tools.bench.floors import floors
from tools.bench.meter import Meter, Traffic
from tools.bench.rivals import Tool
from tools.bench.sample import STEPS, Sample

# No file is to be younger than a tick of the clock when a tool looks at it.
_TICK_S = 0.2
# ext4 gives out no inode that was freed in the last minute, and looks past each of them (fs/ext4/ialloc.c,
# recently_deleted): whoever makes files after a removal pays for it. So nothing is removed but between rounds.
_REST_S = 65.0


@dataclass(frozen=True)
class Bucket:
    """An S3 server behind a meter; ``directory`` is where the server keeps the objects."""

    meter: Meter
    directory: Path


def measure(
    place: Path,
    shape: Shape,
    tools: list[Tool],
    rounds: int,
    bucket: Bucket | None,
    skipped: frozenset[str] = frozenset(),
) -> tuple[list[Sample], list[dict[str, float]]]:
    """The samples, and the floors of each round. ``place``: a directory of its own, for data and repositories;
    ``skipped``: steps of tools that are left out, as TOOL:STEP."""
    source = place / "source"
    shutil.rmtree(source, ignore_errors=True)
    shape.make(source)
    samples: list[Sample] = []
    floor: list[dict[str, float]] = []
    for number in range(rounds):
        if number:
            shutil.rmtree(place / "used")
            _settle()
            time.sleep(_REST_S)
        (place / "used").mkdir()
        floor.append(floors(source, place / "used"))
        _settle()
        for tool in tools:
            print(f"{shape.title}: round {number + 1} of {rounds}, {tool.name}", file=sys.stderr)
            samples += _one_turn(place, shape, tool, number, bucket, skipped)
    return samples, floor


def _one_turn(
    place: Path, shape: Shape, tool: Tool, number: int, bucket: Bucket | None, skipped: frozenset[str]
) -> list[Sample]:
    source, target = place / "source", place / "target"
    prefix = f"{tool.name}{number}"
    tool.prepare(place / "repository", bucket.meter.endpoint if bucket else "", prefix)
    kept = bucket.directory if bucket else place / "repository/store"
    samples = []
    undo = None
    for step in STEPS:
        if f"{tool.name}:{step}" in skipped:
            continue
        _put_away(target, place / "used")
        if step == "small change":
            undo = shape.change(source, seed=number)
        if step in ("restore", "one file", "one folder"):
            tool.forget()
        _settle()
        if bucket:
            bucket.meter.reset()
        run = _do(step, tool, shape, source, target)
        traffic = bucket.meter.read() if bucket else Traffic({}, 0, 0)
        unwritten_s = _settle()
        _check(step, shape, source, target)
        samples.append(_sample(tool.name, step, number, run, traffic, unwritten_s, _disk_bytes(kept)))
    if undo:
        undo()
    for path in (target, place / "repository", *(bucket.directory.iterdir() if bucket else ())):
        _put_away(path, place / "used")
    return samples


def _sample(
    tool: str, step: str, number: int, run: Run, traffic: Traffic, unwritten_s: float, stored_bytes: int
) -> Sample:
    return Sample(
        tool=tool,
        step=step,
        round=number,
        seconds=run.seconds,
        cpu_seconds=run.cpu_seconds,
        peak_bytes=run.peak_bytes,
        unwritten_seconds=unwritten_s,
        stored_bytes=stored_bytes,
        requests=traffic.requests,
        up_bytes=traffic.up_bytes,
        down_bytes=traffic.down_bytes,
    )


def _settle() -> float:
    """Let the kernel write what is waiting, so that nobody pays for the one before; the seconds it took."""
    started = time.perf_counter()
    subprocess.run(["sync"], check=True)
    seconds = time.perf_counter() - started
    time.sleep(_TICK_S)
    return seconds


def _do(step: str, tool: Tool, shape: Shape, source: Path, target: Path) -> Run:
    match step:
        case "restore":
            return tool.restore(source, target)
        case "one file":
            return tool.one_file(source, shape.one_file(source), target)
        case "one folder":
            return tool.one_folder(source, shape.one_folder(source), target)
        case _:
            return tool.publish(source)


def _check(step: str, shape: Shape, source: Path, target: Path) -> None:
    """A tool that did not do it was not fast."""
    path = shape.one_file(source)
    if step == "one file" and target.read_bytes() != (source / path).read_bytes():
        raise SystemExit("bench: that file is not what was published")
    if step in ("restore", "one folder"):
        found = [item for item in target.rglob(Path(path).name) if item.is_file()]
        if not any(item.read_bytes() == (source / path).read_bytes() for item in found):
            raise SystemExit(f"bench: {step} did not bring {path}")


def _disk_bytes(path: Path) -> int:
    """The bytes of a directory's files, by ``du``; 0 where there is none."""
    if not path.exists():
        return 0
    return int(subprocess.run(["du", "-sb", path], capture_output=True, check=True).stdout.split()[0])


def _put_away(path: Path, used: Path) -> None:
    """Out of the way, until the round is over."""
    if path.exists():
        path.rename(used / str(len(os.listdir(used))))
