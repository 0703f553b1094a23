"""One command of a tool, run and measured: wall and processor seconds, and the memory of all its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.1


@dataclass(frozen=True)
class Run:
    """Seconds on the wall and of the processors (user and system, all processes); the most memory at one time.

    The memory is the larger of two: the largest process by the kernel's own account, and the sum of what all processes
    held together (each page shared by n counted 1/n: proportional set size), looked at every 0.1 s.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(command: list[str], environ: Mapping[str, str], cwd: Path | None = None, out: Path | None = None) -> Run:
    """Run a command; what it says goes to ``out``, or nowhere. SystemExit when it fails.

    GNU time stands between for the largest process: the kernel counts what a process was forked from as its own, and
    time is small. Processor time is that of all its processes, those too that outlive it for a moment.
    """
    with open(out or os.devnull, "wb") as stdout, tempfile.NamedTemporaryFile("r") as measured:
        timed = ["/usr/bin/time", "-f", "%M", "-o", measured.name, *command]
        _adopt_orphans()
        before_s = _children_s()
        started = time.perf_counter()
        process = subprocess.Popen(timed, env=_as_installed(environ), cwd=cwd, stdout=stdout, start_new_session=True)
        watch = _Watch(process.pid)
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        watch.ended.set()
        watch.join()
        if code:
            raise SystemExit(f"bench: {' '.join(command)} ended with {code}")
        _reap(process.pid)
        return Run(seconds, _children_s() - before_s, max(int(measured.read()) * 1024, watch.peak_bytes))


def _adopt_orphans() -> None:
    """Processes whose parent has ended become this process's (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def _reap(group: int) -> None:
    """Wait until every process of a group has ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _children_s() -> float:
    """Processor seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _as_installed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which Python keeps what it has compiled: an installed command has it."""
    whole = {**os.environ, **environ}
    whole.pop("PYTHONDONTWRITEBYTECODE", None)
    return whole


class _Watch(threading.Thread):
    """Looks at the memory of a process's descendants until it is told that they ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(_SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, sum(map(_held_bytes, _descendants(self.pid))))


def _descendants(pid: int) -> Iterator[int]:
    """proc(5), ``/proc/pid/task/tid/children``; a process that is gone has none."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        children = [child for thread in threads for child in _words(f"/proc/{pid}/task/{thread}/children")]
    except OSError:
        return
    for child in children:
        yield int(child)
        yield from _descendants(int(child))


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _held_bytes(pid: int) -> int:
    """A process's proportional set size (proc(5), ``smaps_rollup``); 0 when it is gone."""
    try:
        words = _words(f"/proc/{pid}/smaps_rollup")
    except OSError:
        return 0
    return int(words[words.index("Pss:") + 1]) * 1024 if "Pss:" in words else 0
