"""A process named so that it is never mistaken for another: its number, and when it began."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """``start_time``: in clock ticks after the boot (proc(5), /proc/pid/stat, field 22)."""

    pid: int
    start_time: int

    def is_alive(self) -> bool:
        return _start_time(self.pid) == self.start_time

    def end(self, drain_s: float) -> bool:
        """Ask it to end, and kill it when it has not after ``drain_s`` seconds; returns when it has ended. Whether it
        ended by itself."""
        with self._opened() as pidfd:
            if pidfd is None:
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            is_ended = _wait(pidfd, drain_s)
            if not is_ended:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _wait(pidfd, None)
        # Where it is a child of ours, nothing of it shall stay.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        return is_ended

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Its descriptor, which never comes to mean another process; None where it has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield pidfd if self.is_alive() else None
        finally:
            os.close(pidfd)


def process_id(pid: int) -> ProcessId:
    """Of a process that runs; ProcessLookupError where none does."""
    start_time = _start_time(pid)
    if start_time is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return ProcessId(pid, start_time)


def _start_time(pid: int) -> int | None:
    """None where there is no such process, or only what is left of it for its parent to ask about."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may hold anything.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _wait(pidfd: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else int(seconds * 1000)))
