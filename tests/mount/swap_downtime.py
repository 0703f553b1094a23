"""How long a node goes without an answer while its one volume is swapped, on the local driver's real loop devices.

    python -m tests.mount.swap_downtime --rounds 10 --covers 600

A benchmark and no test. One render node (`boxlink launch --local`) that stands on a volume; two snapshots whose seqs
differ in every hundredth cover; each round swaps one for the other by `boxlink upgrade --snapshot ID --swap`. Two
probes, every 5 ms: the node's own port, and a reader of the node's files, whose bytes are compared. Each line: least /
median / most.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.fleet import until
from tests.mount.test_volume_swap import NODE, Site
from tools.demo.covers import make_covers

_EVERY_S = 0.005


class Reader:
    """Reads one file after the other below ``covers``; ``longest_s`` between two right answers, ``wrong`` others."""

    def __init__(self, covers: Path, expected: dict[str, set[bytes]], seed: int) -> None:
        self.longest_s, self.read, self.wrong = 0.0, 0, 0
        self._covers, self._expected, self._choice = covers, expected, random.Random(seed)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        names = sorted(self._expected)
        last = time.monotonic()
        while not self._ending.wait(_EVERY_S):
            name = self._choice.choice(names)
            try:
                is_right = (self._covers / name).read_bytes() in self._expected[name]
            except OSError:
                is_right = False
            now = time.monotonic()
            self.read += 1
            self.wrong += not is_right
            if is_right:
                self.longest_s, last = max(self.longest_s, now - last), now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--covers", type=int, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boxlink-swap-") as name:
        site = Site(Path(name))
        try:
            _measure(site, arguments.rounds, arguments.covers)
        finally:
            site.close()


def _measure(site: Site, rounds: int, cover_count: int) -> None:
    source = site.fleet.source / "covers"
    make_covers(source, cover_count, seed=2008)
    site.fleet.boxlink("publish", "covers", str(source))
    site.rolled.launch(1)
    until(site.fleet.registrations, "it has registered")
    files = sorted(source.rglob("*.jpg"))
    expected = {str(path.relative_to(source)): {path.read_bytes()} for path in files}
    (source / "notes.txt").write_text("so that the snapshot is of another seq")
    first = _snapshot(site)
    site.rolled.boxlink(*site.words("--snapshot", first))
    for path in files[::100]:
        path.write_bytes(files[-1].read_bytes() + path.name.encode())
        expected[str(path.relative_to(source))].add(path.read_bytes())
    second = _snapshot(site)
    port, readers, whole = [], [], []
    for number in range(rounds):
        reader = Reader(site.rolled.place / NODE / "data/covers", expected, number)
        started = time.monotonic()
        done = site.rolled.boxlink(*site.words("--snapshot", (second, first)[number % 2], "--swap"))
        whole.append((time.monotonic() - started) * 1000)
        reader.end()
        port.append(float(done["steps"][0]["downtime_ms"]))
        readers.append(reader.longest_s * 1000)
        print(
            f"round {number + 1}: port {port[-1]:.0f} ms, reader {readers[-1]:.0f} ms, "
            f"{reader.read} files read, {reader.wrong} wrong or refused",
            file=sys.stderr,
        )
    for what, taken in (
        ("port: longest without an answer", port),
        ("reader: longest without right bytes", readers),
        ("the command", whole),
    ):
        print(f"{what:36} {min(taken):8.0f} / {statistics.median(taken):8.0f} / {max(taken):8.0f} ms")


def _snapshot(site: Site) -> str:
    site.fleet.boxlink("publish", "covers", str(site.fleet.source / "covers"))
    return str(site.rolled.boxlink("snapshot", "create", "covers")["snapshot"])


if __name__ == "__main__":
    main()
