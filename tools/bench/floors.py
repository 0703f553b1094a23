"""What the machine itself can do with the same files: the least that any tool could take."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

_STARTS = 9


def read_and_hash(top: Path) -> float:
    """Seconds to read every file and hash it with SHA-256, in one thread."""
    started = time.perf_counter()
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    hashlib.file_digest(file, "sha256")
    return time.perf_counter() - started


def scan(top: Path) -> float:
    """Seconds to list every directory and stat every entry."""
    started = time.perf_counter()
    pending = [os.fspath(top)]
    while pending:
        with os.scandir(pending.pop()) as listing:
            for item in listing:
                item.stat(follow_symlinks=False)
                if item.is_dir(follow_symlinks=False):
                    pending.append(item.path)
    return time.perf_counter() - started


def untar(top: Path, place: Path) -> float:
    """Seconds of ``tar xf`` of an archive that is in the page cache; all of it stays in ``place``."""
    archive, target = place / "floor.tar", place / "untarred"
    subprocess.run(["tar", "cf", str(archive), "-C", str(top), "."], check=True)
    target.mkdir()
    started = time.perf_counter()
    subprocess.run(["tar", "xf", str(archive), "-C", str(target)], check=True)
    return time.perf_counter() - started


def copy(top: Path, place: Path) -> float:
    """Seconds of ``cp -r``; the copy stays in ``place``."""
    target = place / "copied"
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(top), str(target)], check=True)
    return time.perf_counter() - started


def interpreter_start() -> float:
    """Seconds that the Python boxlink runs in takes to do nothing: the median of several starts, for one is hardly more
    than the clock's noise."""
    taken: list[float] = []
    for _ in range(_STARTS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def floors(top: Path, place: Path) -> dict[str, float]:
    start = interpreter_start()  # first: what the others leave to the kernel to write would slow it down
    return {
        "read + sha256": read_and_hash(top),
        "scandir + stat": scan(top),
        "tar xf": untar(top, place),
        "cp -r": copy(top, place),
        "interpreter start": start,
    }
