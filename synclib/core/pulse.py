"""Whether work that goes on for ever still advances.

Each piece of work says, when it begins a step, how long that step may take at most; whoever looks learns which of them
are over their time. A step that waits for a store has the store's own deadline; one that goes on for long says so again
and again while it advances.
"""

from __future__ import annotations

# A read of the store has some two minutes of tries (synclib/store/retry.py), and there may be a few of them in a step.
STEP_S = 600.0
# Of work that tells how it advances, but not while it looks through a large directory, or waits for one slow range.
BULK_S = 1800.0


class Pulse:
    """Times are monotonic. Safe between threads: each name is one thread's."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def beat(self, name: str, now: float, within_s: float = STEP_S) -> None:
        """It advances, and is to be heard of again within that time."""
        self._due[name] = now + within_s

    def end(self, name: str) -> None:
        """Nothing further is expected of it."""
        self._due.pop(name, None)

    def late(self, now: float) -> list[str]:
        """Those that have not been heard of in their time."""
        return sorted(name for name, due in list(self._due.items()) if now > due)
