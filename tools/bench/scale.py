"""What an entry costs, in time, bytes and memory, at 100,000, a million and ten million of them.

``python -m tools.bench.scale [--entries N ...] [--published N ...]``. Chains are synthetic (files of 20 KB in folders
of 1,250, whose bytes are nowhere, under 19 small diffs); what is published is a real tree of empty files. Each figure
is of one command, with its largest process's memory; the chain is read from a ``file://`` store.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.lazy.dataset import STORE_KEY
from synclib.store.file import FileStore
from tools.bench.command import run
from tools.bench.large_chain import LargeChain

_DIFFS = 19
_FOLDER = 1000
BOXLINK = str(Path(sys.executable).parent / "boxlink")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--published", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--no-restore", action="store_true", help="where the place has no inodes for a second tree")
    parser.add_argument("--place", type=Path)
    arguments = parser.parse_args()
    print(f"machine: {platform.platform()}, {len(os.sched_getaffinity(0))} processors, ", end="")
    print(f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}; date: {time.strftime('%Y-%m-%d')}\n")
    print("| entries | what | seconds | us an entry | largest process | bytes stored an entry |")
    print("|---|---|---|---|---|---|")
    for count in arguments.entries:
        with scratch(arguments.place) as place:
            chain(place, count)
    for count in arguments.published:
        with scratch(arguments.place) as place:
            published(place, count, with_restore=not arguments.no_restore)
    return 0


@contextmanager
def scratch(place: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="boxlink-scale-", dir=place))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def environment(place: Path) -> dict[str, str]:
    return {
        "BOXLINK_STORE": f"file://{place}/store",
        "XDG_CACHE_HOME": str(place / "cache"),
        "XDG_STATE_HOME": str(place / "state"),
        "HOME": str(place),
    }


def report(place: Path, count: int, what: str, *words: str, stored_bytes: int = 0) -> None:
    """Run a command, and print its row."""
    out = place / "out"
    found = run([BOXLINK, *words], environment(place), out=out)
    stored = f"{stored_bytes / count:.1f}" if stored_bytes else ""
    per_entry = f"{found.seconds / count * 1e6:.2f}"
    print(f"| {count:,} | {what} | {found.seconds:.2f} | {per_entry} | {found.peak_bytes / 1e6:.0f} MB | {stored} |")
    sys.stdout.flush()


def chain(place: Path, count: int) -> None:
    """A chain of 20 runs: opened, listed, compared, compacted."""
    store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
    store.create()
    large = LargeChain(store, count, _DIFFS, place)
    runs_bytes = sum(run.object_bytes for run in large.manifest.runs)
    path = os.fsdecode(next(path for path in large.real if b"978" in path))
    report(place, count, "cat of one file, chain of 20 runs", "cat", "covers", path, stored_bytes=runs_bytes)
    report(place, count, "ls of one folder", "ls", "covers", os.path.dirname(path))
    report(place, count, "ls -r of all", "ls", "covers", "-r")
    report(place, count, "compact --full", "compact", "covers", "--full")
    report(place, count, "cat after it", "cat", "covers", path)
    report(place, count, "diff of the first seq and the last", "diff", "covers", "1", str(_DIFFS + 1))


def published(place: Path, count: int, *, with_restore: bool) -> None:
    """A tree of empty files: published, published again, one file changed, restored, collected."""
    store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
    store.create()
    store.put(STORE_KEY, b"{}")
    source = place / "source"
    for folder in folders(source, count):
        for number in range(_FOLDER):
            os.close(os.open(f"{folder}/{number:04}", os.O_CREAT | os.O_WRONLY))
    time.sleep(0.2)
    report(place, count, "publish", "publish", "data", str(source), "-q")
    report(place, count, "publish, nothing changed", "publish", "data", str(source), "-q")
    (source / "000/000000/0000").write_text("changed")
    report(place, count, "publish, one file changed", "publish", "data", str(source), "-q")
    shutil.rmtree(place / "state")
    report(place, count, "publish, nothing changed, no local state", "publish", "data", str(source), "-q")
    if with_restore:
        report(place, count, "restore", "restore", "data", str(place / "target"), "-q")
        report(place, count, "restore, nothing to do", "restore", "data", str(place / "target"), "-q")
    report(place, count, "verify", "verify", "data", "-q")
    report(place, count, "gc", "gc", "data", "-q")


def folders(source: Path, count: int) -> Iterator[str]:
    """Folders of a thousand files, a thousand in a folder."""
    for number in range(count // _FOLDER):
        folder = source / f"{number // _FOLDER:03}/{number:06}"
        folder.mkdir(parents=True)
        yield str(folder)


if __name__ == "__main__":
    sys.exit(main())
