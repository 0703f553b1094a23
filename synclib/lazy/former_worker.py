"""Workers of a mount that outlived their keeper, found by who goes on with it. Imports next to nothing, for keepers do.

workers/<pid>    in a mount's directory: a worker has flock(2) on it for as long as it lives
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

_DIRECTORY = "workers"


def note_worker(directory: Path) -> int:
    """Let this process be found as a worker of a mount until it ends; the descriptor that says so."""
    place = directory / _DIRECTORY
    place.mkdir(mode=0o700, exist_ok=True)
    temporary = place / f"{os.getpid()}.new"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Only now under its name: nobody takes it for one that has ended.
    os.rename(temporary, place / str(os.getpid()))
    return descriptor


class FormerWorker:
    """A process that is not our child (synclib/lazy/keeper.py, Worker)."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """``descriptor``: of that process (pidfd_open(2)): no other one that has its pid later is ever meant."""
        self.pid, self._descriptor = pid, descriptor

    def poll(self) -> int | None:
        return 0 if self._has_ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        return 0

    def terminate(self) -> None:
        signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def _has_ended(self, timeout: float | None) -> bool:
        watch = select.poll()
        watch.register(self._descriptor, select.POLLIN)
        return bool(watch.poll(None if timeout is None else timeout * 1000))


def former_workers(directory: Path) -> list[FormerWorker]:
    """Those of a mount that live. What others have left goes."""
    return list(_living(directory / _DIRECTORY))


def _living(place: Path) -> Iterator[FormerWorker]:
    for path in place.glob("[0-9]*[0-9]"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), path.open("rb") as file:
            process = os.pidfd_open(int(path.name))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Looked at last: it lived when its descriptor was opened.
                yield FormerWorker(int(path.name), process)
                continue
            os.close(process)
        path.unlink(missing_ok=True)


def outlive(keeper: int, directory: Path, ask_again: Callable[[], None]) -> None:
    """For a worker of a mount in ``directory``, in a thread: wait for the end of its keeper (a pid), which cannot see
    any more that another worker ended; then ask for what others of them leave unanswered when they end."""
    with contextlib.suppress(ProcessLookupError):
        FormerWorker(keeper, os.pidfd_open(keeper)).wait()
    ask_again()  # one may have ended just before
    for other in former_workers(directory):
        if other.pid != os.getpid():
            other.wait()
            ask_again()
