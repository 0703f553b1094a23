"""The life of a backend: what its registration says, and whether it answers.

    state       active --announced draining--> draining
                active, draining --withdrawn or lease run out--> gone --announced--> active or draining
    answering   FAILURES_MAX failures to connect or answer in a row take it out (``is_ejected``);
                one answer, to a request or a probe, puts it back

Requests go to a backend that is active and not ejected, and to no other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

FAILURES_MAX = 3


class State(enum.Enum):
    ACTIVE = "active"
    DRAINING = "draining"
    GONE = "gone"


class Event(enum.Enum):
    ANNOUNCED_ACTIVE = "announced active"
    ANNOUNCED_DRAINING = "announced draining"
    WITHDRAWN = "withdrawn"  # its object was deleted, or its lease ran out
    ANSWERED = "answered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Health:
    state: State = State.ACTIVE
    failures: int = 0  # in a row
    changed_at: float = 0.0  # monotonic: when state or ejection last changed

    @property
    def is_ejected(self) -> bool:
        return self.failures >= FAILURES_MAX

    @property
    def takes_requests(self) -> bool:
        return self.state is State.ACTIVE and not self.is_ejected


_ANNOUNCED = {
    Event.ANNOUNCED_ACTIVE: State.ACTIVE,
    Event.ANNOUNCED_DRAINING: State.DRAINING,
    Event.WITHDRAWN: State.GONE,
}


def step(health: Health, now: float, event: Event) -> Health:
    """The health after an event. What a backend answers after it is gone changes nothing."""
    if event in _ANNOUNCED:
        state = _ANNOUNCED[event]
        if state is health.state:
            return health
        # One that comes back is a new one: its failures were another process's.
        return Health(state, 0 if health.state is State.GONE else health.failures, now)
    if health.state is State.GONE:
        return health
    failures = min(health.failures + 1, FAILURES_MAX) if event is Event.FAILED else 0
    if failures == health.failures:
        return health
    changed = replace(health, failures=failures)
    return replace(changed, changed_at=now) if changed.is_ejected != health.is_ejected else changed
