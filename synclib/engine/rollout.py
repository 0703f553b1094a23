"""Driving a rolling upgrade: the journal in the store, the fleet, the proxy's figures (core/rollout.py decides)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from synclib.core.rollout import (
    GONE,
    Drain,
    Effect,
    NodeSpec,
    Phase,
    Rollout,
    Start,
    State,
    Step,
    Traffic,
    View,
    alarm_of,
    batches,
    decide,
    gone_of,
    rolled_back,
    serving,
    views_wanted,
)
from synclib.core.swap import decide_swap, swaps_wanted
from synclib.engine.host import Host
from synclib.engine.rollout_journal import Entry, Journal
from synclib.errors import BoxlinkError, Conflict, Fenced, Missing, Unavailable

_LOOK_S = 0.25
_STORE_S_MAX = 600.0
_CLEAR_S = 60.0
_FALLEN_S = 1.0  # a new node that is not ready for so long has fallen
# A store that is not mounted misses what was there a moment ago.
_AWAY = (Unavailable, Missing)
Say = Callable[[str, Rollout], None]


class Fleet(Protocol):
    """Where nodes run. Every call may be made again."""

    def look(self, specs: Sequence[NodeSpec]) -> dict[str, View]:
        """What is seen of each, by name."""

    def start(self, spec: NodeSpec) -> None:
        """Start a node, unless it runs. Any BoxlinkError is tried again."""

    def drain(self, spec: NodeSpec) -> None:
        """Ask a node to end in order, unless it was asked; one that does not within its time is ended."""

    def traffic(self) -> Traffic | None:
        """What the proxy counted; None where there is none to ask."""

    def clear(self, specs: Sequence[NodeSpec]) -> list[str]:
        """Take away what ended nodes have left, above all what is paid for. What is not gone yet, for a person:
        the same call again goes on with it."""


def plan(
    name: str,
    olds: Sequence[NodeSpec],
    new_of: Callable[[NodeSpec], NodeSpec],
    size: int,
    at: str,
    place: str = "",
    swap: str = "",
) -> Rollout:
    """A rollout of these nodes, which are at ``place``. ``size``: how many at a time, after the first ones. ``swap``:
    the dataset whose volumes are swapped, one at a time."""
    if not olds:
        raise Missing("no node of that role runs", hint="boxlink launch ROLE starts one")
    steps = [
        Step(old=old, new=new_of(old), batch=batch) for old, batch in zip(olds, batches(len(olds), size), strict=True)
    ]
    return Rollout(id=name, role=olds[0].role, place=place, swap=swap, steps=steps, at=at)


class Driver:
    """Carries a rollout to its end. One at a time has the journal: who is overtaken ends with Fenced."""

    def __init__(
        self,
        journal: Journal,
        fleet: Fleet,
        host: Host,
        say: Say,
        *,
        ready_s_max: float,
        bake_s: float,
        settle: Callable[[Rollout], None] = lambda _: None,
    ) -> None:
        """``bake_s``: how long the proxy is watched after a batch, before the next. ``settle``: what is done at the end
        besides, before the journal says so."""
        self._journal, self._fleet, self._host, self._say = journal, fleet, host, say
        self._ready_s_max, self._bake_s, self._settle = ready_s_max, bake_s, settle
        self._before: Traffic | None = None
        # Nodes that another driver may have asked for just before it was killed.
        self._inherited: set[str] = set()
        self._changed_at = 0.0
        self._baked = -1
        self._fallen = ""  # which new node was ready, and is not any more

    def take(self, entry: Entry, *, state: State | None = None, reason: str = "") -> Entry:
        """Become the driver of a journal; ``state``: what an operator wants of it."""
        rollout = entry.rollout
        self._inherited = _asked_for(rollout)
        if state is State.ROLLING_BACK:
            rollout = rolled_back(rollout, reason)
        elif state is not None:
            rollout = rollout.model_copy(update={"state": state, "reason": reason})
        return self._journal.replace(
            entry, rollout.model_copy(update={"epoch": rollout.epoch + 1, "driver": self._host.node})
        )

    def run(self, entry: Entry) -> Rollout:
        """Until it is done, rolled back, failed, or paused by somebody."""
        self._changed_at = self._host.clock.monotonic()
        self._before = _as_before(self._fleet.traffic(), entry.rollout.p99_ms_before)
        told: set[str] = set()
        while True:
            entry = self._patient(entry, self._newest)
            rollout = entry.rollout
            if rollout.state.is_final or rollout.state is State.PAUSED:
                return rollout
            views = self._look(rollout)
            waited_s = self._host.clock.monotonic() - self._changed_at
            decided = decide_swap if rollout.swap else decide
            decision = decided(rollout, views, waited_s, self._ready_s_max, self._fallen or self._alarm())
            if decision.rollout != rollout:
                self._bake(rollout, decision.rollout)
                if decision.rollout.state.is_final:
                    # Before the journal says so: whoever is killed here is followed by another who does it.
                    self._clear(decision.rollout)
                    self._settle(decision.rollout)
                entry = self._patient(entry, lambda was, now=decision.rollout: self._journal.replace(was, now))  # type: ignore[misc]
                self._changed_at = self._host.clock.monotonic()
                self._tell(rollout, entry.rollout)
                continue
            effects = [effect for effect in decision.effects if not self._may_come(effect, views)]
            refused = [why for why in map(self._carry_out, effects) if why]
            if refused and rollout.state is not State.RUNNING and refused[0] not in told:
                told.add(refused[0])  # it is tried until its time is over
                self._say(refused[0], rollout)
            if refused and rollout.state is State.RUNNING:
                turned = rolled_back(rollout, refused[0])
                entry = self._patient(entry, lambda was, now=turned: self._journal.replace(was, now))  # type: ignore[misc]
                self._changed_at = self._host.clock.monotonic()
                self._tell(rollout, entry.rollout)
            self._host.clock.sleep(_LOOK_S)

    def _look(self, rollout: Rollout) -> dict[str, View]:
        """What is seen of the nodes; who tells it may be away for a while."""
        told = False
        until = self._host.clock.monotonic() + _STORE_S_MAX
        while True:
            try:
                return self._fleet.look(swaps_wanted(rollout) if rollout.swap else views_wanted(rollout))
            except _AWAY as error:
                if self._host.clock.monotonic() > until:
                    raise
                if not told:
                    self._say(f"who tells how nodes do does not answer, and is waited for: {error.message}", rollout)
                    told = True
                self._wait_for_store()

    def _wait_for_store(self) -> None:
        """The time does not count against a node that gets ready."""
        self._changed_at += 1.0
        self._host.clock.sleep(1.0)

    def _newest(self, entry: Entry) -> Entry:
        """The journal as it is now: another may have paused it, or taken it over."""
        newer = self._journal.read(entry.rollout.id, entry.etag)
        if newer is None:
            return entry
        if newer.rollout.epoch != entry.rollout.epoch:
            raise Fenced(
                f"{newer.rollout.driver or 'another'} drives {newer.rollout.id} now",
                hint="nothing is broken: what it does is in the store",
            )
        return newer

    def _patient(self, entry: Entry, ask: Callable[[Entry], Entry]) -> Entry:
        """What the store answers; one that does not is waited for, while the fleet stays as it is."""
        until = self._host.clock.monotonic() + _STORE_S_MAX
        told = False
        while True:
            try:
                return ask(entry)
            except Conflict:
                # Somebody wrote between our look and our write: look again.
                return self._newest(entry)
            except _AWAY as error:
                if self._host.clock.monotonic() > until:
                    raise
                if not told:
                    self._say(f"the store does not answer, it is waited for: {error.message}", entry.rollout)
                    told = True
                self._wait_for_store()

    def _carry_out(self, effect: Effect) -> str:
        """Why it will not do however often it is tried; empty where it was done, or may be at the next look."""
        try:
            match effect:
                case Start(spec):
                    self._fleet.start(spec)
                case Drain(spec):
                    self._fleet.drain(spec)
        except BoxlinkError as error:
            return "" if error.is_retryable else f"{effect.spec.node}: {error.message}"
        return ""

    def _may_come(self, effect: Effect, views: Mapping[str, View]) -> bool:
        """Whether it would start what was asked for by another who was killed, and is not seen yet: it would run twice.
        The time does not count against it."""
        node = effect.spec.node
        is_awaited = isinstance(effect, Start) and node in self._inherited and views.get(node, GONE).may_come
        if is_awaited:
            self._changed_at = self._host.clock.monotonic()
        return is_awaited

    def _alarm(self) -> str:
        now = self._fleet.traffic()
        if self._before is None or now is None:
            return ""
        if now.requests < self._before.requests:
            # It was started anew, and counts from nothing.
            self._before = Traffic(0, 0, self._before.p99_ms)
        return alarm_of(self._before, now)

    def _bake(self, former: Rollout, rollout: Rollout) -> None:
        """After a batch is done, before the next begins: does the proxy see anything, do the new nodes stay ready?"""
        if rollout.state is not State.RUNNING or rollout.batch() == former.batch() or self._baked == rollout.batch():
            return
        self._baked = rollout.batch()
        until = self._host.clock.monotonic() + self._bake_s
        since: dict[str, float] = {}
        while self._host.clock.monotonic() < until and not self._alarm() and not self._fallen:
            self._see_fallen(rollout, since)
            self._host.clock.sleep(_LOOK_S)
        now = self._fleet.traffic()
        if self._before is not None and now is not None and not alarm_of(self._before, now):
            # Failures of the next batch are not lost among the many requests that went well before it; how long answers
            # took before anything was changed is what all batches are compared with.
            self._before = replace(now, p99_ms=self._before.p99_ms)

    def _see_fallen(self, rollout: Rollout, since: dict[str, float]) -> None:
        """Note a new node that does not answer any more. ``since``: when each was seen so first."""
        if rollout.swap:
            return
        try:
            views = self._fleet.look(serving(rollout))
        except _AWAY:
            return  # nobody tells
        now = self._host.clock.monotonic()
        for node, view in views.items():
            if view.is_ready:
                since.pop(node, None)
            elif now - since.setdefault(node, now) >= _FALLEN_S:
                self._fallen = f"{node} was ready, and is not any more: {view.why}"

    def _clear(self, rollout: Rollout) -> None:
        """Until nothing is left of what has ended; what does not go is said."""
        until = self._host.clock.monotonic() + _CLEAR_S
        while True:
            is_hopeless = False
            try:
                left = self._fleet.clear(gone_of(rollout))
            except BoxlinkError as error:
                left, is_hopeless = [error.message], not error.is_retryable
            if not left:
                return
            if is_hopeless or self._host.clock.monotonic() > until:
                self._say(f"left behind, see that it goes: {'; '.join(left)[:1000]}", rollout)
                return
            self._host.clock.sleep(_LOOK_S)

    def _tell(self, former: Rollout, rollout: Rollout) -> None:
        if rollout.state is not former.state:
            self._say(f"{rollout.state}{': ' + rollout.reason if rollout.reason else ''}", rollout)
        for was, step in zip(former.steps, rollout.steps, strict=True):
            if was.phase is not step.phase:
                self._say(_swap_text(step) if rollout.swap else _step_text(step), rollout)


def _asked_for(rollout: Rollout) -> set[str]:
    """The nodes that whoever drove it until now was about to start."""
    if rollout.state is State.ROLLING_BACK:
        left = [step for step in rollout.steps if step.phase not in (Phase.WAITING, Phase.UNDONE)]
        return {step.old.node for step in left}
    return {step.new.node for step in rollout.steps if step.phase is Phase.STARTING}


def _as_before(now: Traffic | None, p99_ms: float | None) -> Traffic | None:
    """The proxy's figures to judge by: how long answers took before any node was changed is in the journal, for whoever
    goes on after another was killed may see the new nodes' times already."""
    return now if now is None or p99_ms is None else replace(now, p99_ms=p99_ms)


def _step_text(step: Step) -> str:
    match step.phase:
        case Phase.STARTING:
            return f"{step.new.node} is started, to take the place of {step.old.node}"
        case Phase.DRAINING:
            return f"{step.new.node} is ready; {step.old.node} drains"
        case Phase.DONE:
            return f"{step.old.node} has ended; {step.new.node} serves"
        case Phase.UNDONE:
            return f"{step.old.node} serves as before"
        case Phase.WAITING:
            return f"{step.old.node} waits for its turn"


def _swap_text(step: Step) -> str:
    node = step.new.node
    match step.phase:
        case Phase.STARTING:
            return f"{node} is asked to let its volume go, and to go on with one of {step.new.snapshot}"
        case Phase.DONE:
            seen = "" if step.downtime_ms is None else f"; it went {step.downtime_ms:.0f} ms without an answer at most"
            return f"{node} goes on with the new volume{seen}"
        case _:
            return f"{node} stands as before"
