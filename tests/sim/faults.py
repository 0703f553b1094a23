"""What can go wrong at a call of the store, how often, and when."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from random import Random
from typing import NamedTuple


class Fault(enum.Enum):
    """The values are what ``--faults`` names."""

    BEFORE = "before"  # an error, and nothing was done
    AFTER = "after"  # done, but the answer is lost
    LATE = "late"  # the answer is lost, and it is done some time later
    OWN_CONFLICT = "own412"  # a conditional write that is done, and then told to have lost
    CONFLICT = "409"  # a conditional write that nobody was in the way of, and that was not done
    BURST = "503"  # the next few calls fail, whoever makes them
    REFUSED = "403"  # this actor's next few calls are refused, as with expired credentials
    TRUNCATED = "truncated"  # a body is cut short
    FLIPPED = "flipped"  # one bit of a body is another
    STALE = "stale"  # a follower gets a head as it was before the last change, as from a cache on the way
    SLOW = "slow"  # seconds to minutes until the call is done, or its answer here: others overtake it
    STALL = "stall"  # the caller stands still for hours
    BROKEN_LIST = "list"  # a listing ends in an error halfway
    KILL = "kill"  # the caller is killed, before or after the call is done or between two local renames


_READS = {Fault.TRUNCATED, Fault.FLIPPED}
_WRITES = {Fault.AFTER, Fault.LATE}
_CONDITIONAL = {Fault.OWN_CONFLICT, Fault.CONFLICT}
_RARE = {Fault.KILL: 0.4, Fault.STALL: 0.1, Fault.REFUSED: 0.2, Fault.BURST: 0.3, Fault.STALE: 0.5}
_LOCAL_KILL = 0.01
_RATE_AIMED = 0.5
_STALLS_S = [25 * 3600.0, 25 * 3600.0, 75 * 3600.0]  # longer than a lease, and than what an ended one still holds
_STALL_AIMED_S = 200 * 3600.0
_RATES = [0.01, 0.05, 0.15]


def parse_faults(text: str) -> frozenset[Fault]:
    """``all``, ``none``, or names with commas between."""
    if text == "all":
        return frozenset(Fault)
    return frozenset(Fault(word) for word in text.split(",") if word and word != "none")


def swarm(random: Random) -> frozenset[Fault]:
    """Some kinds, not all: a run without one kind gets further into what another brings."""
    return frozenset(kind for kind in Fault if random.random() < 0.5)


class Aim(NamedTuple):
    """The only calls at which faults are drawn, and often, for a schedule that is too rare otherwise."""

    actor: str  # how its name begins
    verb: str
    key: str  # what is in it

    def is_at(self, actor: str, verb: str, key: str) -> bool:
        return actor.startswith(self.actor) and verb == self.verb and self.key in key


class Faults:
    """Draws the faults of one run; nothing more once it is stopped."""

    def __init__(self, random: Random, kinds: Iterable[Fault], aim: Aim | None = None) -> None:
        self._random, self._aim = random, aim
        self.kinds = sorted(kinds, key=lambda kind: kind.value)
        self._rate = random.choice(_RATES)
        self._burst_left = 0
        self._refused_left: dict[str, int] = {}
        self.is_stopped = False

    def draw(self, actor: str, verb: str, key: str, *, is_conditional: bool, is_followed: bool) -> Fault | None:
        """The fault of one call, or None."""
        if self.is_stopped or (self._aim is not None and not self._aim.is_at(actor, verb, key)):
            return None
        if self._burst_left:
            self._burst_left -= 1
            return Fault.BURST
        if self._refused_left.get(actor):
            self._refused_left[actor] -= 1
            return Fault.REFUSED
        # A head is written once where other objects are written often.
        rate = _RATE_AIMED if self._aim is not None else min(0.4, self._rate * (4 if is_conditional else 1))
        if self._random.random() >= rate:
            return None
        possible = [kind for kind in self.kinds if _is_possible(kind, verb, is_conditional, is_followed)]
        if not possible:
            return None
        chosen = self._random.choices(possible, [_RARE.get(kind, 1.0) for kind in possible])[0]
        if chosen is Fault.BURST:
            self._burst_left = self._random.randrange(1, 20)
        if chosen is Fault.REFUSED:
            self._refused_left[actor] = self._random.randrange(1, 5)
        return chosen

    def is_killed_here(self) -> bool:
        """Whether a local rename is an actor's last deed."""
        return not self.is_stopped and Fault.KILL in self.kinds and self._random.random() < _LOCAL_KILL

    def stall(self) -> tuple[int, float]:
        """For how many steps of the others, and how long."""
        if self._aim is not None:
            return 200 + self.number(400), _STALL_AIMED_S
        seconds = _STALLS_S[self.number(len(_STALLS_S))]
        return 1 + self.number(100), seconds

    def slowness_s(self) -> float:
        """From a second to five minutes, as often below 17 s as above."""
        return float(300.0 ** self._random.random())

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def number(self, stop: int) -> int:
        """In 0..stop-1."""
        return self._random.randrange(stop)


def _is_possible(kind: Fault, verb: str, is_conditional: bool, is_followed: bool) -> bool:
    if kind in _READS:
        return verb in ("get", "ranges", "suffix")
    if kind in _WRITES:
        return verb in ("put", "delete")
    if kind in _CONDITIONAL:
        return is_conditional
    if kind is Fault.STALE:
        return verb == "get" and is_followed
    if kind is Fault.BROKEN_LIST:
        return verb == "list"
    return True
