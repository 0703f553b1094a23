"""Runs a role's processes: one loop that waits for their lines, their ends, signals and the time.

What is done when is decided in :mod:`synclib.core.supervise`.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synclib.clock import Clock
from synclib.core.supervise import Action, Supervision
from tools.fleet.child import Child
from tools.fleet.console import Console
from tools.fleet.guard import Guard
from tools.heard import HEARD_BY
from tools.notify import ALIVE, READY, STOPPING, notify, watchdog_s

if TYPE_CHECKING:
    from tools.fleet.up_admin import UpAdmin

_STOPS = (signal.SIGTERM, signal.SIGINT)
# What they mean is each program's own affair.
USER_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
# In the environment of an ``up`` that another one keeps: what it is. It ends with RENEWING where a newer one is to run
# (tools/fleet/renewal.py).
KEPT, ON_TRIAL, PROVEN = "BOXLINK_KEPT", "on trial", "proven"
RENEWING = 75
# For so long after its start a newer release is on trial, and so often each of its processes may fail then.
TRIAL_S = 10.0
TRIAL_FAILURES = 3
_LOOK_S = 1.0
_NOT_STARTED = 127  # as a shell says of a program that it cannot run


@dataclass(frozen=True)
class Planned:
    """A process that is to run. ``stop_s``: how long it may take to end. ``is_renewing``: that it ends with 0 says that
    a newer release is to run instead of all of them. ``is_own``: its program is boxlink."""

    name: str
    command: list[str]
    environment: dict[str, str]
    stop_s: float
    is_renewing: bool = False
    is_own: bool = False


@dataclass
class Figures:
    """Of one process. ``began``: monotonic, of its last start; ``last_exit``: its last exit code, minus the number of a
    signal that ended it; None before its first end."""

    name: str
    is_running: bool = False
    starts: int = 0
    began: float = 0.0
    last_exit: int | None = None

    def start(self, now: float) -> None:
        self.is_running, self.began, self.starts = True, now, self.starts + 1

    def end(self, code: int) -> None:
        self.is_running, self.last_exit = False, code


class Supervisor:
    """``figures``: of its processes, in their order; ``admin``: who tells them, if it is set before :meth:`run`;
    ``is_taken_back``: whether a rollback took back the release that runs, if that can be.
    ``killed`` names the processes that did not end in their time; ``is_renewing``: they ended because another
    release is to run; ``failed``: on trial, the process that failed again and again at the beginning, and so ended all.
    """

    def __init__(
        self, planned: Sequence[Planned], console: Console, clock: Clock, *, is_on_trial: bool = False
    ) -> None:
        self.figures = [Figures(process.name) for process in planned]
        self.admin: UpAdmin | None = None
        self.is_taken_back: Callable[[], bool] | None = None
        self.killed: list[str] = []
        self.is_renewing = False
        self.failed = ""
        self._trial_until = clock.monotonic() + TRIAL_S if is_on_trial else -math.inf
        self._failures = [0 for _ in planned]
        self._planned = planned
        self._console = console
        self._clock = clock
        self._decide = Supervision([process.stop_s for process in planned])
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._guard = Guard()
        self._alive_s = watchdog_s()
        self._alive_at = math.inf if self._alive_s is None else -math.inf
        self._look_at = math.inf

    def run(self) -> None:
        """Until a signal to stop, and all have ended. Must be called in the main thread: the kernel takes the end of
        the thread that started a process for the end of its parent."""
        with stop_signals() as signals, self._selector, contextlib.closing(self._guard):
            self._selector.register(signals, selectors.EVENT_READ, lambda: self._on_signals(signals))
            if self.admin is not None:
                self.admin.watch(self._selector)
            self._look_at = math.inf if self.is_taken_back is None else -math.inf
            self._step()
            notify(READY)
            while not self._decide.is_done:
                for key, _ in self._selector.select(self._wait_s()):
                    key.data()
                self._look()
                self._step()
                self._say_alive()
                if self.admin is not None:
                    self.admin.sweep()
            if self.admin is not None:
                self.admin.close()

    def _wait_s(self) -> float | None:
        admin_at = math.inf if self.admin is None else self.admin.due_at
        due_at = min(self._decide.due_at, self._alive_at, self._look_at, admin_at)
        return None if due_at == math.inf else max(0.0, due_at - self._clock.monotonic())

    def _say_alive(self) -> None:
        """As often as it is wanted: that the loop comes round is what whoever watches is to know."""
        if self._alive_s is not None and (now := self._clock.monotonic()) >= self._alive_at:
            notify(ALIVE)
            self._alive_at = now + self._alive_s

    def _look(self) -> None:
        """Whoever rolls back does not know who runs it: it is looked for."""
        now = self._clock.monotonic()
        if self.is_taken_back is None or now < self._look_at:
            return
        if self._decide.is_stopping:
            self._look_at = math.inf
        elif not self.is_taken_back():
            self._look_at = now + _LOOK_S
        else:
            self.is_renewing = True
            self._console.event("renewing", why="a rollback took back the release that runs")
            self._decide.stop()

    def _step(self) -> None:
        for action, index in self._decide.step(self._clock.monotonic()):
            self._act(action, index)

    def _act(self, action: Action, index: int) -> None:
        name = self._planned[index].name
        if action is Action.START:
            self._start(index)
        elif action is Action.TERMINATE:
            self._console.event("stopping", process=name)
            self._children[index].send(signal.SIGTERM)
        else:
            self._console.event("killed", process=name)
            self.killed.append(name)
            self._children[index].kill()

    def _start(self, index: int) -> None:
        planned = self._planned[index]
        try:
            child = Child(planned.command, {**planned.environment, HEARD_BY: str(os.getpid())}, self._guard)
        except OSError as error:
            pause_s = self._decide.ended(self._clock.monotonic(), index)
            self.figures[index].end(_NOT_STARTED)
            self._console.event("not-started", process=planned.name, why=str(error), again_in_s=pause_s)
            self._count_failure(index)
            return
        self._children[index] = child
        self.figures[index].start(self._clock.monotonic())
        self._selector.register(child.output, selectors.EVENT_READ, lambda: self._on_output(index, child))
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._on_end(index, child))
        self._console.event("started", process=planned.name, pid=child.pid)

    def _on_output(self, index: int, child: Child) -> bool:
        """Whether there may be more at once."""
        if not child.is_open:
            return False
        try:
            lines = child.read()
        except BlockingIOError:
            return False
        if lines is not None:
            self._show(index, lines)
            return True
        self._show(index, child.rest())
        self._selector.unregister(child.output)
        child.close()
        return False

    def _show(self, index: int, lines: list[bytes]) -> None:
        planned = self._planned[index]
        for line in lines:
            self._console.line(planned.name, line, is_own=planned.is_own)

    def _on_end(self, index: int, child: Child) -> None:
        self._selector.unregister(child.pidfd)
        code = child.reap()
        self.figures[index].end(code)
        # Its last words before the news of its end.
        while self._on_output(index, child):
            pass
        self._show(index, child.rest())
        del self._children[index]
        pause_s = self._decide.ended(self._clock.monotonic(), index)
        if self._decide.is_stopping and code == 128 + signal.SIGTERM:
            code = -signal.SIGTERM  # what was asked of it, said as a shell does
        how = {"signal": signal.Signals(-code).name} if code < 0 else {"code": code}
        planned = self._planned[index]
        if planned.is_renewing and code == 0 and not self._decide.is_stopping:
            self.is_renewing = True
            self._console.event("renewing", process=planned.name)
            self._decide.stop()
            return
        again = {} if pause_s is None else {"again_in_s": pause_s}
        self._console.event("ended", process=planned.name, **how, **again)
        if code:
            self._count_failure(index)

    def _count_failure(self, index: int) -> None:
        """A release whose processes do not come to life is not one to stay at."""
        self._failures[index] += 1
        is_early = self._clock.monotonic() < self._trial_until and not self._decide.is_stopping
        if is_early and self._failures[index] >= TRIAL_FAILURES:
            self.failed = self._planned[index].name
            self._decide.stop()

    def _on_signals(self, signals: int) -> None:
        for number in os.read(signals, 512):
            if number == signal.SIGHUP:
                for child in self._children.values():
                    child.send(signal.SIGHUP)
            elif number in USER_SIGNALS:
                for child in self._children.values():
                    child.hand_on(number)
            elif self.is_renewing:
                # Somebody wants it to end for good.
                self.is_renewing = False
                notify(STOPPING)
            elif self._decide.is_stopping:
                # A SIGTERM once more asks for what is being done; impatient is who is at a terminal.
                for action, index in self._decide.kill() if number == signal.SIGINT else ():
                    self._act(action, index)
            else:
                notify(STOPPING)
                self._decide.stop()


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that says the number of each signal that came, a byte each."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*_STOPS, *USER_SIGNALS, signal.SIGHUP)}
    former = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)
