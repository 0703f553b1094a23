"""Whether a start grows with the data: 1.8 GB to 1.8 TB, a store 35 ms away, an empty node each time.

``python -m tools.bench.sizes [--sizes NAME ...] [--rounds N] [--place DIR]``. Needs root, EROFS and FUSE. The datasets
are synthetic (tools/bench/synthetic.py): the index is real, the packs are computed, and what is read is compared with
what it must be. Requests are counted by the server; round trips are those on the way to the bytes, one after the other.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.engine.attach import attach
from synclib.engine.host import Host, no_progress
from synclib.lazy.dataset import Dataset
from synclib.store.file import FileStore
from tools.bench.distance import Distance
from tools.bench.far_process import Cost, FarProcess, environment, in_process
from tools.bench.far_server import URL, Asked
from tools.bench.lazy import BOXLINK, Node
from tools.bench.scale import scratch
from tools.bench.synthetic import FOLDER_FILES, ROOT, Content, make, open_synthetic, path_of

_DISTANCE = Distance(0.035, 0.200)
_SEED = 8
_RANDOM_READS = 300
_WAIT_S = 300.0
# (files, bytes of each)
SIZES = {
    "0.18 GB": (10_000, 18_000),
    "1.8 GB": (100_000, 18_000),
    "18 GB": (1_000_000, 18_000),
    "180 GB": (10_000_000, 18_000),
    "1.8 TB": (10_000_000, 180_000),
}


@dataclass(frozen=True)
class Sample:
    """One start: seconds and what was asked for until the first byte."""

    seconds: float
    cost: Cost
    way: Cost  # of these, what lies on the way to the bytes


class Bench:
    """Of one size. Every start has a node of its own, with nothing on it."""

    def __init__(self, place: Path, far: FarProcess, name: str) -> None:
        self._place, self._far = place, far
        self.files, file_bytes = SIZES[name]
        self._content = Content(file_bytes)
        self._chance = random.Random(_SEED)
        self._nodes = 0

    def node(self) -> Node:
        self._nodes += 1
        return Node(self._place / f"node {self._nodes}", environment(self._far.endpoint), URL)

    def some_file(self) -> tuple[str, bytes]:
        """A path, and what is in it."""
        folder, number = self._chance.randrange(self.files // FOLDER_FILES), self._chance.randrange(FOLDER_FILES)
        return os.fsdecode(path_of(folder, number)), self._content.file(folder, number)

    def first_byte(self, kind: str) -> Sample:
        """To the first file on an empty node: by a mount, or by the reader."""
        node = self.node()
        path, right = self.some_file()
        self._far.take()
        started = time.perf_counter()
        if kind == "reader":
            found = subprocess.run(
                [BOXLINK, "cat", "covers", path], env=node.environment, capture_output=True, check=True
            ).stdout
        else:
            node.run("mount", "covers", str(node.target), "--no-hydrate", "--mode", kind)
            found = (node.target / path).read_bytes()
        seconds = time.perf_counter() - started
        asked = self._far.take()
        if kind != "reader":
            node.run("umount", str(node.target))
        _must_be(found == right, path)
        return Sample(seconds, Cost.of(asked), Cost.of(on_the_way(asked)))

    def synch_s(self) -> float:
        """From synch.active to synch.down, by their times; the daemon runs before."""
        node = self.node()
        covers = node.place / "data/covers"
        covers.mkdir(parents=True)
        with _daemon(node, covers.parent) as log:
            wait_until(lambda: "started" in log.read_text())
            (covers / "synch.active").write_text("lazy")
            asked_ns = (covers / "synch.active").stat().st_mtime_ns
            down = covers / "synch.down"
            wait_until(down.exists)
            took_s = (down.stat().st_mtime_ns - asked_ns) / 1e9
            path, right = self.some_file()
            _must_be((covers / path).read_bytes() == right, path)
        return took_s

    def worker_bytes(self) -> tuple[int, int]:
        """What a worker takes after some random reads, now and at most (proc(5): VmRSS, VmHWM)."""
        node = self.node()
        node.run("mount", "covers", str(node.target), "--no-hydrate")
        try:
            for _ in range(_RANDOM_READS):
                path, right = self.some_file()
                _must_be((node.target / path).read_bytes() == right, path)
            status = Path(f"/proc/{node.figures()['worker']}/status").read_text()
        finally:
            node.run("umount", str(node.target))
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in status.splitlines() if "kB" in line}
        return found["VmRSS"], found["VmHWM"]


def on_the_way(asked: list[Asked]) -> list[Asked]:
    """Of what was asked for, by when it came, what a reader waits for: not leases and traces, which are asked for
    beside it, and the head once, for who takes a lease looks at it again."""
    found: list[Asked] = []
    for row in asked:
        verb, _, key = row.what.partition(" ")
        is_first_head = key.endswith("/head") and not any(other.what == row.what for other in found)
        if verb == "GET" and (is_first_head or any(f"/{kind}/" in key for kind in ("run", "image", "map", "pack"))):
            found.append(row)
    return found


def _must_be(is_right: bool, path: str) -> None:
    if not is_right:
        raise SystemExit(f"bench: wrong bytes: {path}")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("bench: it does not come")
        time.sleep(0.002)


@contextmanager
def _daemon(node: Node, data: Path) -> Iterator[Path]:
    log = node.place / "daemon.log"
    command = [BOXLINK, "sync", "--data", str(data), "--no-hydrate"]
    with log.open("wb") as out:
        daemon = subprocess.Popen(command, env=node.environment, stdout=out, stderr=out)
    try:
        yield log
    finally:
        (data / "covers/synch.active").unlink(missing_ok=True)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        end_mounts(node, data)


def end_mounts(node: Node, data: Path) -> None:
    """What the daemon has left mounted, for it outlives the daemon."""
    while (data / "covers").is_mount():
        subprocess.run(["umount", "-l", str(data / "covers")], check=True)
    for row in node.run("status")["mounts"]:
        # It may have ended by itself meanwhile.
        command = [BOXLINK, "umount", row["directory"], "--force"]
        subprocess.run(command, env=node.environment, check=False, capture_output=True)


def made(place: Path, name: str) -> float:
    """Make a dataset with its metadata; how long it took."""
    files, file_bytes = SIZES[name]
    started = time.perf_counter()
    store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
    store.create()
    make(store, Content(file_bytes), files, place)
    host = Host("publisher", SystemClock(), SystemEntropy(), place / "publisher/state", place / "publisher/cache")
    attach(Dataset(store, ROOT), host, no_progress, entries_min=1)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES)[1:])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--place", type=Path)
    options = parser.parse_args()
    print(f"machine: {platform.platform()}, {len(os.sched_getaffinity(0))} processors, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}; date: {time.strftime('%Y-%m-%d')}\n")
    print("| data | files | made in s | by | s | round trips | requests | KB | synch s | worker MB now, at most |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in options.sizes:
        with scratch(options.place) as place:
            took_s = made(place, name)
            file_bytes = SIZES[name][1]
            with in_process(open_synthetic, str(place / "store"), file_bytes, distance=_DISTANCE, seed=_SEED) as far:
                _measure(Bench(place, far, name), name, took_s, options.rounds)
    return 0


def _measure(bench: Bench, name: str, made_s: float, rounds: int) -> None:
    synch = [bench.synch_s() for _ in range(rounds)]
    now, most = bench.worker_bytes()
    rest = f"{_spread(synch)} | {now / 1e6:.0f}, {most / 1e6:.0f}"
    for kind in ("erofs", "fuse", "reader"):
        samples = [bench.first_byte(kind) for _ in range(rounds)]
        trips = _spread([sample.way.round_trips for sample in samples], 0)
        requests = _spread([sample.cost.requests for sample in samples], 0)
        kb = _spread([sample.cost.body_bytes / 1000 for sample in samples], 0)
        seconds = _spread([sample.seconds for sample in samples])
        print(
            f"| {name} | {bench.files:,} | {made_s:.0f} | {kind} | {seconds} | {trips} | {requests} | {kb} | {rest} |"
        )
        sys.stdout.flush()
        rest = "|"


def _spread(values: list[float] | list[int], digits: int = 2) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
