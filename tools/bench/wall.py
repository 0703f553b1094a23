"""From an empty node to the first tile of a large wall: ``python -m tools.bench.wall [--covers N] [--rounds N]``.

The wall is synthetic (tools/bench/synthetic.py): its index is real, each cover is one of 64 pictures with a number of
its own behind it, computed by the store, which is 35 ms away. A node is a sync and a render server, started at the same
moment with nothing on the disk; it is over when a tile of the wall's middle, at full resolution, has
come. Needs root, EROFS and FUSE. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from synclib.clock import SystemClock, SystemEntropy
from synclib.engine.attach import attach
from synclib.engine.host import Host, no_progress
from synclib.lazy.dataset import Dataset
from synclib.store.file import FileStore
from tools.bench.distance import Distance
from tools.bench.far_process import Cost, FarProcess, environment, in_process
from tools.bench.far_server import URL
from tools.bench.lazy import BOXLINK, Node
from tools.bench.scale import scratch
from tools.bench.sizes import end_mounts
from tools.bench.synthetic import FOLDER_FILES, ROOT, Content, SyntheticStore, make

_DISTANCE, _SEED = Distance(0.035, 0.200), 8
_FILE_BYTES, _PICTURES = 18_000, 64
_WIDTH, _HEIGHT = 200, 300
_WAIT_S = 300.0
_EVERY_S = 0.01


class Covers(Content):
    """Each a picture that can be drawn, as long as all others."""

    def __init__(self) -> None:
        super().__init__(_FILE_BYTES)
        self._pictures = [_picture(number) for number in range(_PICTURES)]

    def _stretch(self, number: int) -> memoryview:
        picture = self._pictures[number % _PICTURES]
        # What follows the end of a JPEG is not looked at.
        return memoryview((picture + b"%d" % number).ljust(self.file_bytes, b"\0"))


def _picture(number: int) -> bytes:
    chance = random.Random(number)
    small = Image.new("RGB", (8, 12))
    small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(96)])
    out = io.BytesIO()
    small.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    if len(out.getvalue()) > _FILE_BYTES - 8:
        raise SystemExit("bench: a picture is too long")
    return out.getvalue()


def open_covers(directory: str) -> SyntheticStore:
    return SyntheticStore(FileStore(directory, SystemClock(), SystemEntropy()), Covers())


@dataclass(frozen=True)
class Sample:
    """``ready_s``: until render had registered; ``tile_s``: until the tile was there. ``cost``: of all until then."""

    ready_s: float
    tile_s: float
    cost: Cost


def one_start(place: Path, far: FarProcess) -> Sample:
    node = Node(place, environment(far.endpoint), URL)
    data = place / "data"
    (data / "covers").mkdir(parents=True)
    words = ["render", "--data", str(data), "--dataset", "covers", "--listen", "127.0.0.1:0", "--json"]
    far.take()
    started = time.perf_counter()
    with (
        _running(node, ["sync", "--data", str(data), "--lazy", "--no-hydrate"], place / "sync.log"),
        _running(node, words, place / "render.log") as log,
    ):
        try:
            port = _port(log)
            ready_s = time.perf_counter() - started
            wall = json.loads(_get(port, "/wall.json"))
            # The middle of the wall: nothing of it was needed for anything else.
            columns, rows = wall["width"] // wall["tile"], wall["height"] // wall["tile"]
            _get(port, f"/tiles/{wall['wall']}/{wall['zoom_max']}/{columns // 2}/{rows // 2}.jpg")
            tile_s = time.perf_counter() - started
            cost = Cost.of(far.take())
        finally:
            (data / "covers/synch.active").unlink(missing_ok=True)
    end_mounts(node, data)
    return Sample(ready_s, tile_s, cost)


@contextmanager
def _running(node: Node, words: list[str], log: Path) -> Iterator[Path]:
    with log.open("wb") as out:
        process = subprocess.Popen([BOXLINK, *words], env=node.environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield log
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _port(log: Path) -> int:
    """Of the render server, once it says that it is ready."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("{") and (said := json.loads(line))["event"] == "ready":
                return int(said["listen"].rpartition(":")[2])
        time.sleep(_EVERY_S)
    raise SystemExit(f"bench: no render server: {log.read_text()[-2000:]}")


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or not body:
        raise SystemExit(f"bench: {path} is answered with {answer.status}")
    return body


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covers", type=int, default=1_000_000, help=f"a multiple of {FOLDER_FILES}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--place", type=Path)
    options = parser.parse_args()
    print(f"machine: {platform.platform()}, {len(os.sched_getaffinity(0))} processors, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}; date: {time.strftime('%Y-%m-%d')}\n")
    with scratch(options.place) as place:
        store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
        store.create()
        make(store, Covers(), options.covers, place)
        host = Host("publisher", SystemClock(), SystemEntropy(), place / "publisher/state", place / "publisher/cache")
        attach(Dataset(store, ROOT), host, no_progress, entries_min=1)
        with in_process(open_covers, str(place / "store"), distance=_DISTANCE, seed=_SEED) as far:
            samples: list[Sample] = []
            for number in range(options.rounds):
                node = place / f"node {number}"
                node.mkdir()
                samples.append(one_start(node, far))
                shutil.rmtree(node, ignore_errors=True)
    total = options.covers * _FILE_BYTES
    print(f"{options.covers:,} covers, {total / 1e9:.1f} GB; median (least to most) of {options.rounds}")
    for what, values, digits in (
        ("render ready, s", [sample.ready_s for sample in samples], 2),
        ("first tile, s", [sample.tile_s for sample in samples], 2),
        ("requests", [float(sample.cost.requests) for sample in samples], 0),
        ("round trips", [float(sample.cost.round_trips) for sample in samples], 0),
        ("MB read", [sample.cost.body_bytes / 1e6 for sample in samples], 2),
        ("of the data, %", [sample.cost.body_bytes / total * 100 for sample in samples], 3),
    ):
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        print(f"| {what} | {statistics.median(values):.{digits}f} ({spread}) |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
