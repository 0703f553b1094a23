"""How long a snapshot of a volume takes that is attached and written to, on the local driver: flush and clone.

    python -m tests.mount.volume_snapshot --rounds 20 --gib 4

A benchmark and no test; it needs root, and a pool of clones. A writer puts blocks of 512 KiB at random places of the
volume's device all the while, as fast as it may, and never flushes them. Each round makes one snapshot, looks whether
all that was written before is in it, and lets it go. Milliseconds: least / median / most.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from synclib.clock import SystemClock
from synclib.volume.base import BLOCK_BYTES, GIB
from synclib.volume.local import LocalDriver
from tests.conformance.local_volumes import end_pool

_STAMP_BYTES = 8


class Writer:
    """``written``: by block, the number of the write to it that is done; each block begins with that number."""

    def __init__(self, device: Path, blocks: int, pause_s: float) -> None:
        self.written: dict[int, int] = {}
        self.count = 0
        self._device, self._blocks, self._pause_s = device, blocks, pause_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        chance = random.Random(1)
        filling = chance.randbytes(BLOCK_BYTES - _STAMP_BYTES)
        with self._device.open("r+b", buffering=0) as file:
            while not self._ending.wait(self._pause_s):
                index, number = chance.randrange(self._blocks), self.count + 1
                os.pwrite(file.fileno(), number.to_bytes(_STAMP_BYTES, "big") + filling, index * BLOCK_BYTES)
                self.written[index] = self.count = number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--gib", type=int, default=4, help="of the volume, whose blocks are all written once before")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between two writes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boxlink-volume-") as name:
        pool = Path(name) / "pool"
        try:
            _measure(LocalDriver(pool, SystemClock()), arguments.rounds, arguments.gib, arguments.pause)
        finally:
            end_pool(pool)


def _measure(driver: LocalDriver, rounds: int, gib: int, pause_s: float) -> None:
    volume = driver.create_volume(size_gib=gib, zone="here", token="measured", tags={})
    if driver.why_copies:
        sys.exit(f"a pool here copies its images: {driver.why_copies}")
    driver.attach(volume.id, "n1")
    device = driver.device(driver.volumes()[0])
    blocks = gib * GIB // BLOCK_BYTES
    _fill(device, blocks)
    writer = Writer(device, blocks, pause_s)
    taken: list[float] = []
    dirty: list[int] = []
    try:
        before = 0
        for number in range(rounds):
            time.sleep(1)  # so that there is something to flush
            dirty.append(writer.count - before)
            before, written = writer.count, dict(writer.written)
            started = time.monotonic()
            snapshot = driver.snapshot(volume.id, token=f"{number}", tags={})
            taken.append((time.monotonic() - started) * 1000)
            _check(driver, snapshot.id, written)
            driver.delete_snapshot(snapshot.id)
            print(f"round {number + 1}: {taken[-1]:.0f} ms, {dirty[-1]} blocks since the last", file=sys.stderr)
    finally:
        writer.end()
        driver.detach(volume.id, "n1")
    print(f"snapshot of {gib} GiB     {min(taken):6.0f} / {statistics.median(taken):6.0f} / {max(taken):6.0f} ms")
    print(f"written since the last {min(dirty):6} / {statistics.median(dirty):6.0f} / {max(dirty):6} blocks of 512 KiB")
    print(f"load {os.getloadavg()[0]:.1f}")


def _fill(device: Path, blocks: int) -> None:
    data = random.Random(2).randbytes(BLOCK_BYTES)
    with device.open("r+b", buffering=0) as file:
        for index in range(blocks):
            os.pwrite(file.fileno(), bytes(_STAMP_BYTES) + data[_STAMP_BYTES:], index * BLOCK_BYTES)
        os.fsync(file.fileno())


def _check(driver: LocalDriver, snapshot_id: str, written: dict[int, int]) -> None:
    """What was written before is in it; what came meanwhile may be."""
    with driver.image(snapshot_id).open("rb", buffering=0) as file:
        for index, number in written.items():
            found = int.from_bytes(os.pread(file.fileno(), _STAMP_BYTES, index * BLOCK_BYTES), "big")
            if found < number:
                raise AssertionError(f"block {index} of the snapshot is of write {found}, not of {number}")


if __name__ == "__main__":
    main()
