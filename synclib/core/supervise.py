"""What a supervisor of a role's processes does next: start, stop or kill one of them.

Processes are started in their order. One that ends by itself is started again after a pause, which doubles each time
and begins anew once it has lived for a while. Stopping goes in the other order, one at a time: a server drains while
what it stands on still runs. Who does not end in its time is killed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 30.0
STEADY_S = 60.0  # who lived that long failed for a new reason


class Action(Enum):
    START = "start"
    TERMINATE = "terminate"
    KILL = "kill"


class _State(Enum):
    PAUSED = "paused"
    RUNNING = "running"
    ENDING = "ending"
    KILLED = "killed"
    ENDED = "ended"


@dataclass
class _Process:
    stop_s: float
    state: _State = _State.PAUSED
    # When it goes on by itself: its start while paused, its kill while ending.
    due_at: float = -math.inf
    started_at: float = 0.0
    pause_s: float = 0.0


def next_pause(pause_s: float, lived_s: float) -> float:
    """Seconds until the next start, given those before the last one (0: none yet)."""
    if not pause_s or lived_s >= STEADY_S:
        return PAUSE_FIRST_S
    return min(2 * pause_s, PAUSE_MAX_S)


class Supervision:
    """``stop_s``: of each process, in the order of their start, how long it may take to end. Times are monotonic."""

    def __init__(self, stop_s: Sequence[float]) -> None:
        self._processes = [_Process(seconds) for seconds in stop_s]
        self.is_stopping = False

    @property
    def is_done(self) -> bool:
        return self.is_stopping and all(process.state is _State.ENDED for process in self._processes)

    @property
    def due_at(self) -> float:
        """When :meth:`step` has something to do, if nothing happens before; inf where it has nothing."""
        timed = (_State.PAUSED, _State.ENDING)
        return min((process.due_at for process in self._processes if process.state in timed), default=math.inf)

    def step(self, now: float) -> list[tuple[Action, int]]:
        """What is to be done now, in this order, and to which process."""
        if self.is_stopping:
            return self._stop_next(now)
        actions = []
        for index, process in enumerate(self._processes):
            if process.state is _State.PAUSED and process.due_at <= now:
                process.state, process.started_at = _State.RUNNING, now
                actions.append((Action.START, index))
        return actions

    def ended(self, now: float, index: int) -> float | None:
        """A process has ended, or could not be started: the pause before its next start, None where there is none."""
        process = self._processes[index]
        if process.state in (_State.PAUSED, _State.ENDED):
            raise ValueError("a process ended that did not run")
        if self.is_stopping:
            process.state = _State.ENDED
            return None
        process.pause_s = next_pause(process.pause_s, now - process.started_at)
        process.state, process.due_at = _State.PAUSED, now + process.pause_s
        return process.pause_s

    def stop(self) -> None:
        """Let all end, the last one first."""
        self.is_stopping = True
        for process in self._processes:
            if process.state is _State.PAUSED:
                process.state = _State.ENDED

    def kill(self) -> list[tuple[Action, int]]:
        """End all at once."""
        self.stop()
        actions = []
        for index, process in enumerate(self._processes):
            if process.state in (_State.RUNNING, _State.ENDING):
                process.state = _State.KILLED
                actions.append((Action.KILL, index))
        return actions

    def _stop_next(self, now: float) -> list[tuple[Action, int]]:
        left = [index for index, process in enumerate(self._processes) if process.state is not _State.ENDED]
        if not left:
            return []
        process = self._processes[left[-1]]
        if process.state is _State.RUNNING:
            process.state, process.due_at = _State.ENDING, now + process.stop_s
            return [(Action.TERMINATE, left[-1])]
        if process.state is _State.ENDING and process.due_at <= now:
            process.state = _State.KILLED
            return [(Action.KILL, left[-1])]
        return []
