"""Lazy mounts over a store some milliseconds away: start-ups with and without a trace, and hydration.

``python -m tools.bench.lazy [--files N] [--boot N] [--round-trip MS]``. Needs root, EROFS and FUSE, and Go for the S3
server and the proxy that delays. Files of 20 KB; a start-up reads some of them, one after the other, in an order of
chance. Each case has an empty cache. Printed: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from synclib.core.hydration import FLIGHTS_MAX, RANGE_BYTES_MAX
from synclib.store.open import open_store
from synclib.store.retry import untried
from tools import s3server
from tools.bench.data import SMALL_BYTES, Shape
from tools.bench.toxiproxy import delayed

BOXLINK = str(Path(sys.executable).parent / "boxlink")


class Node:
    """A machine with an empty cache, whose store is far."""

    def __init__(self, place: Path, environment: dict[str, str], url: str) -> None:
        self.place, self.target = place, place / "mount"
        self.target.mkdir(parents=True)
        self.environment = {
            **os.environ,
            **environment,
            "BOXLINK_STORE": url,
            "XDG_CACHE_HOME": str(place / "cache"),
            "XDG_STATE_HOME": str(place / "state"),
        }

    def run(self, *words: str) -> Any:
        done = subprocess.run([BOXLINK, *words, "--json"], env=self.environment, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"bench: {words}: {done.stdout.decode()} {done.stderr.decode()}")
        return json.loads(done.stdout)

    @contextmanager
    def mounted(self, *words: str) -> Iterator[None]:
        self.run("mount", "bench", str(self.target), *words)
        try:
            yield
        finally:
            self.run("umount", str(self.target))

    def figures(self) -> dict[str, Any]:
        (row,) = self.run("status")["mounts"]
        return dict(row)

    def wait_for(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not condition(found := self.figures()):
            time.sleep(1)  # to ask takes processor time, too
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--boot", type=int, default=300)
    parser.add_argument("--round-trip", type=int, default=35, metavar="MS")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="boxlink-lazy-"))
    try:
        with s3server.running() as server, delayed(server.endpoint, options.round_trip) as far:
            bench = Bench(place, server, far, options.boot)
            bench.publish(options.files)
            print(json.dumps({**_machine(), **vars(options), "cases": bench.measure()}, indent=1))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return 0


class Bench:
    def __init__(self, place: Path, server: s3server.S3Server, far: str, boot: int) -> None:
        self._place, self._server, self._boot = place, server, boot
        self._environment = {**server.environment(), "AWS_ENDPOINT_URL": far}
        self._paths: list[str] = []
        self._count = 0

    def publish(self, count: int) -> None:
        source = self._place / "source"
        Shape("small", count).make(source)
        self._paths = sorted(str(path.relative_to(source)) for path in source.rglob("*.jpg"))
        near = Node(self._place / "publisher", self._server.environment(), self._server.url)
        near.run("init")
        near.run("publish", "bench", str(source))

    def measure(self) -> dict[str, object]:
        chance = random.Random(7)
        boot = chance.sample(self._paths, self._boot)
        folder = self._paths[: self._boot]
        cases: dict[str, object] = {
            "folders in order, no trace, no hydration": self._start_up(folder, "--no-hydrate"),
            "start-up, no trace, no hydration": self._start_up(boot, "--no-hydrate"),
            "start-up, no trace": self._start_up(boot),
            "recorded": self._record(boot),
            "start-up, trace, no hydration": self._start_up(boot, "--no-hydrate"),
            "start-up, trace": self._start_up(boot),
            "demand alone": self._demand("--no-hydrate"),
            "demand beside hydration": self._demand(),
            "hydration": self._hydration(),
            "bare ranges": self._bare_ranges(),
        }
        return cases

    def _node(self) -> Node:
        self._count += 1
        return Node(self._place / f"node {self._count}", self._environment, self._server.url)

    def _start_up(self, paths: list[str], *words: str) -> dict[str, object]:
        node = self._node()
        started = time.perf_counter()
        with node.mounted(*words):
            mounted = time.perf_counter()
            for path in paths:
                (node.target / path).read_bytes()
            ready = time.perf_counter()
            found = node.figures()
        return {
            "mount_s": round(mounted - started, 3),
            "read_s": round(ready - mounted, 3),
            "faults": found["faults"],
            "requests": found["requests"]["get"],
            "mb_down": round(found["bytes_down"] / 1e6, 1),
            "fault_p50_ms": found["fault_p50_ms"],
        }

    def _record(self, paths: list[str]) -> object:
        node = self._node()
        with node.mounted("--no-hydrate"):
            for path in paths:
                (node.target / path).read_bytes()
            node.run("trace", "stop", str(node.target))
            while not node.run("trace", "show", "bench")["traces"]:
                time.sleep(0.1)
        return node.run("trace", "show", "bench")["replay"]

    def _demand(self, *words: str) -> dict[str, object]:
        """Files of chance, one after the other, after the start-up, as long as there is something to hydrate."""
        node, chance = self._node(), random.Random(9)
        with node.mounted(*words):
            node.run("trace", "stop", str(node.target))
            node.wait_for(lambda found: found["hydration"] != "trace")
            waits = []
            for _ in range(self._boot):
                path = node.target / chance.choice(self._paths)
                before = time.perf_counter()
                path.read_bytes()
                waits.append(time.perf_counter() - before)
            found = node.figures()
        waits.sort()
        return {
            "read_p50_ms": round(waits[len(waits) // 2] * 1000, 1),
            "read_p95_ms": round(waits[len(waits) * 95 // 100] * 1000, 1),
            "fault_p50_ms": found["fault_p50_ms"],
            "fault_p99_ms": found["fault_p99_ms"],
            "faults": found["faults"],
            "hydrated_percent": found["hydrated_percent"],
        }

    def _hydration(self) -> dict[str, object]:
        node = self._node()
        with node.mounted():
            found = node.wait_for(lambda found: found["hydration"] == "done")
        seconds = found["hydration_s"]
        return {
            "seconds, durable": seconds,
            "mb_s": round(found["hydrated_total_bytes"] / 1e6 / seconds, 1),
            "requests": found["requests"]["get"],
            "usd": found["usd"],
        }

    def _bare_ranges(self) -> dict[str, object]:
        """The same packs by the same client, in ranges as long and as many at once, and thrown away."""
        os.environ.update(self._environment)
        store, meter = open_store(self._server.url, {"endpoint": self._environment["AWS_ENDPOINT_URL"]})
        ranges = [
            (info.key, start, min(start + RANGE_BYTES_MAX, info.size))
            for info in store.list("data/bench/pack/")
            for start in range(0, info.size, RANGE_BYTES_MAX)
        ]
        bare = untried(store)
        started = time.perf_counter()
        with ThreadPoolExecutor(FLIGHTS_MAX) as pool:
            for _ in pool.map(lambda found: len(bare.get_ranges(found[0], [found[1:]])[0]), ranges):
                pass
        seconds = time.perf_counter() - started
        return {
            "seconds": round(seconds, 2),
            "mb_s": round(meter.bytes_down / 1e6 / seconds, 1),
            "requests": meter.requests["get"],
        }


def _machine() -> dict[str, object]:
    return {
        "machine": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "file_bytes": SMALL_BYTES,
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
