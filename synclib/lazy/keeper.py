"""The keeper of a lazy mount: a small process that holds /dev/fuse open and has a worker answer it.

A worker may die at any moment: what it had taken and not answered is asked for again by the next one, and no reader
sees more than a pause. While the keeper lives the mount lives; where no worker comes to life the connection is aborted,
so that readers get an error rather than wait for ever. It imports next to nothing, for what it cannot do cannot fail.

SIGHUP has it renewed: it becomes the program that is installed now, by execve(2), which keeps its pid, its connection
and its worker. As that it starts another worker beside the old one, and tells the old one to retire when the new one
answers. Where the new program does not start, or its worker does not come to life, all stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from synclib.core import fuse
from synclib.lazy.kept_mount import KeptMount

# How long readers may wait for a worker that does not come to life.
DEADLINE_S = 30.0
# How long a worker may take to retire; then it is killed, and what it had is asked of the next.
RETIRE_S = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
_STOP_S = 5.0
_LOOK_FIRST_MS, _LOOK_MS = 10, 1000


class Worker(Protocol):
    """What a keeper needs of a process (subprocess.Popen)."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Inherited:
    """A child that the program before this one in the same process has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._code = 0
            else:
                self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Keeper:
    """One mount.

    ``spawn(device, ready, is_successor, restarts)`` starts a worker that inherits both descriptors, writes a byte to
    ``ready`` when it answers, ends when the mount is gone, and retires on SIGTERM. ``renew(device, worker, restarts)``
    becomes the program that is installed now; it returns only where that cannot be done.
    """

    def __init__(
        self,
        kept: KeptMount,
        spawn: Callable[[int, int, bool, int], subprocess.Popen[bytes]],
        renew: Callable[[int, int, int], None],
        store: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        """``store(device)``: have the connection held open by others too, so that a kill of all of us does not end it;
        None: by nobody any more."""
        self._kept = kept
        self._spawn, self._renew, self._store = spawn, renew, store
        self._device = -1
        self._worker: Worker | None = None
        self._is_told_to_end = self._is_told_to_renew = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.restarts = 0

    def run(self, on_mounted: Callable[[], None]) -> None:
        """Mount, and keep while it is used; then take everything away again. SIGTERM ends it at once.

        What is unmounted may still be used: by files that are open after a lazy unmount, in another mount namespace, as
        a layer of an overlay.
        """
        self._listen()
        self._device = self._kept.connect()
        try:
            self._start_worker(is_successor=False)
            self._kept.show()
            self._store(self._device)
            on_mounted()
            self._keep_all()
        finally:
            self._end()

    def go_on(self, device: int, worker: int, restarts: int) -> None:
        """As :meth:`run`, for what another program was the keeper of until now: its connection, its worker's pid."""
        self._device, self.restarts = device, restarts
        os.set_inheritable(device, False)
        old = Inherited(worker)
        self._worker = old
        self._listen()
        self._kept.go_on()
        try:
            self._start_beside([old])
            self._keep_all()
        finally:
            self._end()

    def adopt(self, device: int, former: Sequence[Worker], on_mounted: Callable[[], None]) -> None:
        """As :meth:`run`, for a connection whose keeper is gone, and which somebody else held open: what its readers
        wait for is asked for again. ``former``: workers of that keeper that live."""
        self._device = device
        os.set_inheritable(device, False)
        self._listen()
        self._kept.go_on()
        try:
            if former:
                self._start_beside(former)
            else:
                self._start_worker(is_successor=True)
            on_mounted()
            self._keep_all()
        finally:
            self._end()

    def _keep_all(self) -> None:
        try:
            self._keep(self._kept.is_shown)
            self._keep(lambda: self._kept.is_used(self._device))
        finally:
            self._kept.hide()

    def _listen(self) -> None:
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        signal.signal(signal.SIGHUP, self._told_to_renew)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _told_to_end(self, *_: object) -> None:
        self._is_told_to_end = True

    def _told_to_renew(self, *_: object) -> None:
        self._is_told_to_renew = True

    def _become_new(self) -> None:
        """Where it fails, as if it had not been asked for."""
        self._is_told_to_renew = False
        if self._worker is None:
            return
        # A signal that comes before the new program listens would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        os.set_inheritable(self._device, True)
        try:
            self._renew(self._device, self._worker.pid, self.restarts)
        finally:
            os.set_inheritable(self._device, False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _start_beside(self, former: Sequence[Worker]) -> None:
        """A worker in the place of those that answer still; where none comes to life one of them stays."""
        try:
            self._start_worker(is_successor=False)
        except TimeoutError as error:
            print(f"keeper: {error}: the old one stays", file=sys.stderr, flush=True)
            self._worker = former[0]
        else:
            for worker in former:
                self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        """Have a worker end that another one has taken the place of, and what it left unanswered asked for again."""
        with contextlib.suppress(ProcessLookupError):
            worker.terminate()
        try:
            worker.wait(RETIRE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        with contextlib.suppress(OSError):  # before Linux 6.9
            os.write(self._device, fuse.resend_notice())

    def _start_worker(self, *, is_successor: bool) -> None:
        """A worker that answers; TimeoutError when none does within the deadline."""
        deadline = time.monotonic() + DEADLINE_S
        for attempt in range(1 << 30):
            time.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
            if not self._is_connected():
                raise TimeoutError("the connection to the kernel is over")
            ready, told = os.pipe2(os.O_CLOEXEC)
            try:
                self._worker = self._spawn(self._device, told, is_successor or attempt > 0, self.restarts)
            finally:
                os.close(told)
            try:
                left_s = deadline - time.monotonic()
                if left_s > 0 and select.select([ready], [], [], left_s)[0] and os.read(ready, 1):
                    return
            finally:
                os.close(ready)
            self._stop_worker()
            if self._is_told_to_end or time.monotonic() > deadline:
                raise TimeoutError("no worker came to life")

    def _keep(self, is_wanted: Callable[[], bool]) -> None:
        """Replace workers that die, until it is not wanted any more."""
        with open("/proc/self/mountinfo", "rb") as mounts:
            watch = select.poll()
            watch.register(mounts.fileno(), select.POLLERR | select.POLLPRI)
            watch.register(self._wake_read, select.POLLIN)
            look_ms = _LOOK_FIRST_MS
            while not self._is_told_to_end and is_wanted():
                if self._worker is not None and self._worker.poll() is not None:
                    self.restarts += 1
                    self._start_worker(is_successor=True)
                    continue
                if self._is_told_to_renew:
                    self._become_new()
                # That a file was closed nobody tells: it is looked for soon, then less and less often.
                watch.poll(look_ms)
                look_ms = min(2 * look_ms, _LOOK_MS)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def _is_connected(self) -> bool:
        """Whether the kernel may still ask (fs/fuse/dev.c, fuse_dev_poll)."""
        watch = select.poll()
        watch.register(self._device, 0)
        return not watch.poll(0)

    def _end(self) -> None:
        """The connection goes, then its worker, which sees that it went; one that does not is killed."""
        self._store(None)
        self._kept.disconnect()
        os.close(self._device)
        if self._worker is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_STOP_S)
        self._stop_worker()

    def _stop_worker(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            self._worker.wait()
