"""Who runs when: tasks in threads that take turns, one at a time, in an order and a time that follow from a seed."""

from __future__ import annotations

import faulthandler
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

_STEP_S = 0.03  # what a step takes at most, when nothing is slow
_STEPS_MAX = 200_000
_STUCK_S = 60.0  # of real time: nothing in a simulation waits for long


class Stopped(BaseException):
    """The run is over: unwinds a task wherever it is."""


class Killed(BaseException):
    """This incarnation of an actor is dead, as by kill -9: nothing of it reaches the store any more."""


class Violation(AssertionError):
    """Something happened that may never happen."""


@dataclass(eq=False)
class Task:
    name: str
    body: Callable[[], None]
    turn: threading.Lock = field(default_factory=threading.Lock)
    wake_at: float = 0.0
    stalled_until: int = 0  # a step
    is_done: bool = False


class Scheduler:
    """Simulated time and the turns of all tasks. All methods but ``run`` are for the task whose turn it is."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        self.step = 0
        self.failure: BaseException | None = None
        self._random = random
        # How gladly turns pass on: some seeds interleave finely, others let one run far.
        self._eagerness = random.choice([0.1, 0.4, 0.9])
        self._leaps: list[tuple[int, float]] = []  # (until which step, seconds that each step takes)
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._finished = threading.Event()

    def add(self, name: str, body: Callable[[], None]) -> None:
        self._tasks.append(Task(name, body))

    def run(self) -> None:
        """All tasks until they end. Raises what the first of them failed with."""
        threads = [
            threading.Thread(target=self._thread, args=(task,), name=task.name, daemon=True) for task in self._tasks
        ]
        for task, thread in zip(self._tasks, threads, strict=True):
            task.turn.acquire()
            thread.start()
        self._current = self._tasks[0]
        self._current.turn.release()
        if not self._finished.wait(_STUCK_S):
            faulthandler.dump_traceback(all_threads=True)
            raise Violation(f"the simulation is stuck at step {self.step}")
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def pass_turn(self) -> None:
        """A step: whoever the seed says goes on."""
        self._check()
        self.step += 1
        if self.step > _STEPS_MAX:
            self.fail(Violation("it does not come to an end"))
        self._leaps = [leap for leap in self._leaps if leap[0] > self.step]
        self.now += self._random.random() * _STEP_S + sum(seconds for _, seconds in self._leaps)
        current = self._current
        assert current is not None
        if self._is_runnable(current) and self._random.random() > self._eagerness:
            return
        self._hand_on(current)
        self._check()

    def sleep(self, seconds: float) -> None:
        assert self._current is not None
        self._current.wake_at = self.now + seconds
        self.pass_turn()

    def stall(self, steps: int, seconds: float) -> None:
        """The current task stands still for a number of the others' steps, while that much time goes by."""
        assert self._current is not None
        self._current.stalled_until = self.step + steps
        self._leaps.append((self.step + steps, seconds / steps))
        self.pass_turn()

    def fail(self, failure: BaseException) -> None:
        """End the run. Does not return."""
        self.failure = self.failure or failure
        raise Stopped

    def _check(self) -> None:
        if self.failure is not None:
            raise Stopped

    def _is_runnable(self, task: Task) -> bool:
        return not task.is_done and task.wake_at <= self.now and task.stalled_until <= self.step

    def _hand_on(self, current: Task | None) -> None:
        following = self._choose()
        if following is None:
            self._finished.set()
            return
        if following is current:
            return
        self._current = following
        following.turn.release()
        if current is not None:
            current.turn.acquire()

    def _choose(self) -> Task | None:
        alive = [task for task in self._tasks if not task.is_done]
        if self.failure is not None:
            return alive[0] if alive else None
        runnable = [task for task in alive if self._is_runnable(task)]
        if alive and not runnable:
            first = min(alive, key=lambda task: (task.stalled_until > self.step, task.wake_at))
            self.now = max(self.now, first.wake_at)
            first.stalled_until = 0
            runnable = [task for task in alive if self._is_runnable(task)]
        return self._random.choice(runnable) if runnable else None

    def _thread(self, task: Task) -> None:
        task.turn.acquire()
        try:
            self._check()
            task.body()
        except Stopped:
            pass
        except BaseException as error:
            if not isinstance(error, Violation):
                error.add_note("".join(traceback.format_exception(error)[-3:]))
            self.failure = self.failure or error
        finally:
            task.is_done = True
            self._hand_on(None)


class ActorClock:
    """One machine's clock: the shared time, with a wall clock that is wrong by some seconds."""

    EPOCH_NS = 1_800_000_000_000_000_000

    def __init__(self, scheduler: Scheduler, skew_s: float) -> None:
        self._scheduler = scheduler
        self._skew_s = skew_s

    def wall_ns(self) -> int:
        return self.EPOCH_NS + int((self._scheduler.now + self._skew_s) * 1e9)

    def monotonic(self) -> float:
        return self._scheduler.now

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)
