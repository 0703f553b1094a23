"""Time as the stand-in knows it: it stands still until a test, or whoever sleeps on it, moves it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from synclib.clock import ManualClock


class DrivenClock(ManualClock):
    """A manual clock that the client under test and the service share, safe between threads.

    ``pace``: for clients that are processes of their own and cannot move it, it goes by itself, so many seconds in each
    second of the machine.
    """

    def __init__(self, pace: float = 0.0) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._pace = pace
        self._seen = time.monotonic()

    def advance(self, seconds: float) -> None:
        with self._lock:
            super().advance(seconds)

    def monotonic(self) -> float:
        self._catch_up()
        return super().monotonic()

    def wall_ns(self) -> int:
        self._catch_up()
        return super().wall_ns()

    def _catch_up(self) -> None:
        if self._pace:
            with self._lock:
                now = time.monotonic()
                super().advance((now - self._seen) * self._pace)
                self._seen = now


class Timeline:
    """A state that moves by itself: what it is now, and what it will be when."""

    def __init__(self, now: Callable[[], float], state: str) -> None:
        self._now = now
        self._steps = [(now(), state)]

    def set(self, state: str, *, then: str = "", after_s: float = 0.0) -> None:
        """``state`` from now on, and ``then`` when ``after_s`` seconds have passed."""
        self._steps = [(self._now(), state)]
        if then:
            self._steps.append((self._now() + after_s, then))

    @property
    def state(self) -> str:
        return [state for at, state in self._steps if at <= self._now()][-1]

    @property
    def since(self) -> float:
        """When it became what it is."""
        return [at for at, _ in self._steps if at <= self._now()][-1]


class Bucket:
    """A token bucket on the driven clock: ``rate`` a second, and at most a second's worth at once."""

    def __init__(self, now: Callable[[], float], rate: float) -> None:
        self._now = now
        self._rate = rate
        self._level = rate
        self._at = now()

    def take(self) -> bool:
        now = self._now()
        self._level = min(self._rate, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True
