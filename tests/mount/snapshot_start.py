"""An empty node that starts lazily from the store, and one that starts from a snapshot, side by side.

    python -m tests.mount.snapshot_start [--rounds N] [--files N] [--round-trip MS] [--first-touch MS]

A benchmark and no test. An S3 server so many milliseconds away, and a pool of the local driver whose volumes wait so
long at the first read of each block of 512 KiB, as those do that EBS makes of a snapshot. Each round has an empty node
of each kind, in turn: its daemon runs, it is asked for the dataset, and files of chance are read and compared. Without
hydration and traces, so that what is read is what is measured. Needs root, EROFS, FUSE, xfsprogs, and Go for the server
and the proxy that delays. Each figure: least / median / most.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from synclib.clock import SystemClock
from synclib.errors import BoxlinkError
from synclib.volume.local import LocalDriver
from tests.conformance.local_volumes import end_pool
from tools import s3server
from tools.bench.data import Shape
from tools.bench.lazy import BOXLINK, Node
from tools.bench.sizes import end_mounts, wait_until
from tools.bench.toxiproxy import delayed

_READERS = 16
_LARGE = "large.bin"
_LARGE_MB = 64
_FROM_STORE, _FROM_SNAPSHOT = "from the store", "from a snapshot"


class Bench:
    def __init__(self, place: Path, server: s3server.S3Server, far: str, files: int, scattered: int) -> None:
        self._place, self._server, self._far = place, server, far
        self._scattered = scattered
        self._source, self._pool = place / "source", place / "pool"
        self._publish(files)

    def _publish(self, files: int) -> None:
        Shape("small", files).make(self._source)
        with open(self._source / _LARGE, "wb") as file:
            generator = random.Random("large")
            file.writelines(generator.randbytes(1 << 20) for _ in range(_LARGE_MB))
        self._small = sorted(str(path.relative_to(self._source)) for path in self._source.rglob("*.jpg"))
        near = Node(self._place / "publisher", self._server.environment(), self._server.url)
        near.run("init")
        near.run("publish", "covers", str(self._source))
        near.run("snapshot", "create", "covers", *self._volumes)

    @property
    def _volumes(self) -> list[str]:
        return ["--driver", "local", "--pool", str(self._pool)]

    def wait_at_first_touch(self, milliseconds: int) -> None:
        """From now on: the snapshot is written without."""
        (self._pool / "first_touch_ms").write_text(str(milliseconds))

    def round(self, number: int, way: str) -> dict[str, float]:
        environment = {**self._server.environment(), "AWS_ENDPOINT_URL": self._far}
        node = Node(self._place / f"{number}-{way.replace(' ', '-')}", environment, self._server.url)
        chance = random.Random(number)
        first, *rest = chance.sample(self._small, 1 + 2 * self._scattered)
        covers = node.place / "data/covers"
        covers.mkdir(parents=True)
        taken: dict[str, float] = {}
        with self._daemon(node, ["--from", "snapshot"] if way == _FROM_SNAPSHOT else []) as log:
            wait_until(lambda: "started" in log.read_text())
            begun = time.perf_counter()
            (covers / "synch.active").write_text("lazy")
            wait_until((covers / "synch.down").exists)
            taken["synch.active to synch.down"] = time.perf_counter() - begun
            self._read(covers, first)
            taken["… to the first file"] = time.perf_counter() - begun
            one, other = rest[: self._scattered], rest[self._scattered :]
            taken[f"{self._scattered} scattered files, one reader"] = self._seconds(covers, one, 1)
            taken[f"{self._scattered} others, {_READERS} readers"] = self._seconds(covers, other, _READERS)
            taken[f"a file of {_LARGE_MB} MiB"] = self._seconds(covers, [_LARGE], 1)
            taken["requests to the store"] = float(sum(node.figures()["requests"].values()))
        self._let_go()
        shutil.rmtree(node.place)
        return taken

    def _read(self, top: Path, path: str) -> None:
        if (top / path).read_bytes() != (self._source / path).read_bytes():
            raise SystemExit(f"bench: wrong bytes: {path}")

    def _seconds(self, top: Path, paths: list[str], readers: int) -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            list(pool.map(lambda path: self._read(top, path), paths))
        return time.perf_counter() - begun

    @contextmanager
    def _daemon(self, node: Node, words: list[str]) -> Iterator[Path]:
        log, data = node.place / "daemon.log", node.place / "data"
        command = [BOXLINK, "sync", "--data", str(data), "--no-hydrate", *self._volumes, *words]
        with log.open("wb") as out:
            daemon = subprocess.Popen(command, env=node.environment, stdout=out, stderr=out)
        try:
            yield log
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
            end_mounts(node, data)

    def _let_go(self) -> None:
        """What a node has left attached, for whoever begins anew."""
        driver = LocalDriver(self._pool, SystemClock())
        for volume in driver.volumes():
            if volume.node:
                driver.detach(volume.id, volume.node)
            driver.delete_volume(volume.id)

    def close(self) -> None:
        try:
            self._let_go()
        except BoxlinkError as error:
            print(f"bench: {error}", file=sys.stderr)
        end_pool(self._pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--scattered", type=int, default=200)
    parser.add_argument("--round-trip", type=int, default=35, metavar="MS")
    parser.add_argument("--first-touch", type=int, default=35, metavar="MS")
    parser.add_argument("--place", type=Path, help="where everything goes: no RAM disk")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="boxlink-snapshot-start-", dir=options.place))
    try:
        with s3server.running() as server, delayed(server.endpoint, options.round_trip) as far:
            bench = Bench(place, server, far, options.files, options.scattered)
            try:
                bench.wait_at_first_touch(options.first_touch)
                _measure(bench, options.rounds)
            finally:
                bench.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _measure(bench: Bench, rounds: int) -> None:
    print(
        f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} processors, {platform.platform()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    taken: dict[str, list[dict[str, float]]] = {_FROM_STORE: [], _FROM_SNAPSHOT: []}
    for number in range(rounds):
        for way, found in taken.items():
            found.append(bench.round(number, way))
            print(f"round {number + 1} of {rounds}, {way}", file=sys.stderr)
    print(f"| | {' | '.join(taken)} |\n|---|---|---|")
    for line in taken[_FROM_STORE][0]:
        cells = [_spread([one[line] for one in found], line) for found in taken.values()]
        print(f"| {line} | {' | '.join(cells)} |")


def _spread(values: list[float], line: str) -> str:
    digits = 0 if line.startswith("requests") else 2
    return f"{min(values):.{digits}f} / **{statistics.median(values):.{digits}f}** / {max(values):.{digits}f}"


if __name__ == "__main__":
    main()
