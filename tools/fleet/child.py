"""One process of a role: started, heard line by line, sent signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

from tools.fleet.guard import Guard

LINE_BYTES_MAX = 64 << 10
_READ_BYTES = 64 << 10
_SET_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None)


class Child:
    """Runs in a process group of its own, and is killed by the kernel when the process that started it is gone; then
    ``guard`` ends what it has started itself."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], guard: Guard) -> None:
        bind = bound_to_parent()

        def die_with_parent() -> None:
            guard.tell_begun(os.getpid())
            bind()

        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 # the supervisor has one thread
        )
        self._guard = guard
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.is_open = True
        self._rest = b""

    def read(self) -> list[bytes] | None:
        """The lines that it has said since; None when nothing more can come. A line too long comes in pieces.
        BlockingIOError when nothing is there now."""
        data = os.read(self.output, _READ_BYTES)
        if not data:
            return None
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [piece for line in whole for piece in _pieces(line)]
        while len(self._rest) > LINE_BYTES_MAX:
            lines.append(self._rest[:LINE_BYTES_MAX])
            self._rest = self._rest[LINE_BYTES_MAX:]
        return lines

    def rest(self) -> list[bytes]:
        """The line that it has begun and not ended."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []

    def send(self, number: int) -> None:
        """A signal to the process itself: what it has started is its own affair."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def hand_on(self, number: int) -> None:
        """A signal that means something to those that expect it, and would end any other."""
        if is_caught(self.pid, number):
            self.send(number)

    def kill(self) -> None:
        """End it and its process group at once. Its number is its own until :meth:`reap`."""
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Its exit code, minus the signal's number where one ended it; it has ended. What it left in its group ends
        too."""
        self.kill()
        code = self._process.wait()
        self._guard.tell_ended(self.pid)
        os.close(self.pidfd)
        return code

    def close(self) -> None:
        """Hear it no longer."""
        self.is_open = False
        assert self._process.stdout is not None
        self._process.stdout.close()


def is_caught(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (proc(5), /proc/pid/status, SigCgt)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def bound_to_parent() -> Callable[[], None]:
    """What a child of this process does between fork and exec so that the kernel kills it with its parent."""
    parent = os.getpid()

    def bind() -> None:
        _libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _pieces(line: bytes) -> Iterator[bytes]:
    for start in range(0, max(len(line), 1), LINE_BYTES_MAX):
        yield line[start : start + LINE_BYTES_MAX]
