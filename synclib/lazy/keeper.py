"""The keeper of a lazy mount: a small process that holds /dev/fuse open and has a worker answer it.

A worker may die at any moment: what it had taken and not answered is asked for again by the next one, and no reader
sees more than a pause. While the keeper lives the mount lives; where no worker comes to life the connection is aborted,
so that readers get an error rather than wait for ever. It imports next to nothing, for what it cannot do cannot fail.

A worker that lives writes to a pipe of its keeper's, every second, as long as its threads take what the kernel asks.
One that says nothing for longer stands still: it is killed, and the next is asked for what it held. A request that
kills every worker that takes it does not do so for ever: workers that end before they have answered what they were
asked again are replaced less and less often, and then no more, and the mount is an error.

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
# How long workers may go on to end one after the other, none of which answers what the one before left: in this time.
VAIN_S = 60.0
# How long a worker may say nothing.
SILENCE_S = 20.0
# What a worker says: that it lives; and that it has answered all that workers before it left.
LIVES, HAS_CAUGHT_UP = b".", b"+"
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


class Life:
    """What a worker says of itself on a pipe. Its silence is counted while this process looks: when both were stopped,
    or the whole machine was, nobody was silent."""

    def __init__(self, pipe: int) -> None:
        os.set_blocking(pipe, False)
        self._pipe, self._looked, self._silent_s = pipe, time.monotonic(), 0.0
        self.has_caught_up = False

    def look(self) -> bool:
        """Whether it lives, as far as is known: one that has closed the pipe, as those of programs before this one do,
        says nothing more."""
        now = time.monotonic()
        self._silent_s += min(now - self._looked, 2 * _LOOK_MS / 1000)
        self._looked = now
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._pipe, 1 << 16)
            self._silent_s = 0.0
            self.has_caught_up |= HAS_CAUGHT_UP in said
        return self._silent_s < SILENCE_S

    def close(self) -> None:
        os.close(self._pipe)


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

    ``spawn(device, life, is_successor, restarts)`` starts a worker that inherits both descriptors, writes to ``life``
    when it answers, and then every second what :class:`Life` reads, ends when the mount is gone, and retires on
    SIGTERM. ``renew(device, worker, restarts)`` becomes the program that is installed now; it returns only where that
    cannot be done.
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
        self._life: Life | None = None
        self._ending: list[Worker] = []  # that were killed, and need not have ended yet
        self._vain_since: float | None = None  # since when no worker has answered what the one before left
        self._vain = 0  # how many
        self._is_told_to_end = self._is_told_to_renew = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.restarts = 0
        self.is_left = False  # whether it ended with the mount in place, of which all is an error

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
        except TimeoutError:
            # An error for all who read there, until it is unmounted: an empty directory would say that nothing is.
            self.is_left = self._kept.is_shown()
            raise
        finally:
            if not self.is_left:
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

    def _start_worker(self, *, is_successor: bool, pause: int = 0) -> None:
        """A worker that answers; TimeoutError when none does within the deadline. ``pause``: where in the row of pauses
        to begin."""
        deadline = time.monotonic() + DEADLINE_S
        for attempt in range(1 << 30):
            time.sleep(_BACKOFF_S[min(pause + attempt, len(_BACKOFF_S) - 1)])
            if not self._is_connected():
                raise TimeoutError("the connection to the kernel is over")
            life, told = os.pipe2(os.O_CLOEXEC)
            try:
                self._worker = self._spawn(self._device, told, is_successor or attempt > 0, self.restarts)
            finally:
                os.close(told)
            left_s = deadline - time.monotonic()
            if left_s > 0 and select.select([life], [], [], left_s)[0] and os.read(life, 1):
                if self._life is not None:
                    self._life.close()
                self._life = Life(life)
                return
            os.close(life)
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
                if self._has_ended():
                    self._replace_worker()
                    continue
                if self._is_told_to_renew:
                    self._become_new()
                # That a file was closed nobody tells: it is looked for soon, then less and less often.
                watch.poll(look_ms)
                look_ms = min(2 * look_ms, _LOOK_MS)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def _has_ended(self) -> bool:
        """Whether the worker is dead, or stands still, and then is killed: it need not end at once, for it may wait for
        a disk that does not answer."""
        self._ending = [worker for worker in self._ending if worker.poll() is None]
        is_alive = self._life is None or self._life.look()
        if self._worker is None or self._worker.poll() is not None:
            return self._worker is not None
        if not is_alive:
            print(f"keeper: worker {self._worker.pid} stands still, and is killed", file=sys.stderr, flush=True)
            self._worker.kill()
            self._ending.append(self._worker)
        return not is_alive

    def _replace_worker(self) -> None:
        now = time.monotonic()
        if self._life is not None:
            self._life.look()  # what it said last
        if self._life is None or self._life.has_caught_up:
            self._vain_since, self._vain = None, 0
        elif self._vain_since is None:
            self._vain_since, self._vain = now, 1
        else:
            self._vain += 1
            if now > self._vain_since + VAIN_S:
                raise TimeoutError("a request ends every worker that takes it")
        self.restarts += 1
        self._start_worker(is_successor=True, pause=self._vain)

    def _is_connected(self) -> bool:
        """Whether the kernel may still ask (fs/fuse/dev.c, fuse_dev_poll)."""
        watch = select.poll()
        watch.register(self._device, 0)
        return not watch.poll(0)

    def _end(self) -> None:
        """The connection goes, then its worker, which sees that it went; one that does not is killed."""
        self._store(None)
        self._kept.disconnect(is_left=self.is_left)
        os.close(self._device)
        if self._worker is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_STOP_S)
        self._stop_worker()

    def _stop_worker(self) -> None:
        """Nothing waits for long for one that waits for a disk."""
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait(_STOP_S)
