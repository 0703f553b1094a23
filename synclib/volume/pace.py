"""A pace that a service takes of its callers."""

from __future__ import annotations

import threading

from synclib.clock import Clock


class Pace:
    """Lets callers through one after another, at most ``rate`` a second. Safe between threads."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._step_s = 1 / rate
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock.monotonic()

    def wait(self) -> None:
        # Whoever waits keeps the lock: those behind have to wait longer anyway.
        with self._lock:
            now = self._clock.monotonic()
            if now < self._next:
                self._clock.sleep(self._next - now)
            self._next = max(self._next, now) + self._step_s
