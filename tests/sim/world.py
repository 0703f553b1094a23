"""One run: a store, a fleet, a seed; and what may never happen, checked after every step."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest import mock

from synclib.core import leveling, repacking
from synclib.core.manifest import CONDEMNED_MAX
from synclib.core.runfile import RunBuilder
from synclib.engine import collect, pack_job, publish
from synclib.engine.lease import Holder, Moved
from synclib.errors import Missing
from synclib.lazy.dataset import STORE_KEY, HeadState
from synclib.store.memory import MemoryStore
from tests.sim.actor import Actor
from tests.sim.audit import audit
from tests.sim.faults import Aim, Fault, Faults, swarm
from tests.sim.history import Deed, History
from tests.sim.keeper import CopyKeeper, Keeper, Replicator
from tests.sim.node import CopyNode, Node
from tests.sim.publisher import FolderPublisher, Publisher
from tests.sim.reader import PinnedReader, Reader
from tests.sim.scale import AS_IT_IS, TINY, Scale, scaled
from tests.sim.scheduler import Killed, Scheduler, Violation
from tests.sim.store import attempt_quietly

_EVENTS_SHOWN = 30
MEMORY_DISK = Path("/dev/shm")
_LATE_S = 600.0  # no write is later than that
Event = tuple[int, str, str, str, str, str]  # step, actor, verb, key, outcome, fault


@dataclass(frozen=True)
class Plan:
    """What a run is made of. ``faults`` None: the seed chooses the kinds."""

    seed: int
    steps: int = 60  # operations of all actors together
    faults: frozenset[Fault] | None = None
    publishers: int = 2
    nodes: int = 2
    readers: int = 1
    folders: int = 0  # publishers of a folder
    pinned: int = 0  # readers that hold a pin
    keepers: int = 0
    copies: int = 0  # stores that it is copied to, each with a node and a keeper
    copykeepers: int = 1  # of each copy
    upkeep: str = ""  # what keepers do, with commas between; left out, the seed chooses for each of them
    scale: Scale | None = None  # left out, the seed chooses
    aim: Aim | None = None  # where alone faults are; left out, everywhere
    intents: str = ""  # "early": publishers take theirs at once, "late": as they do; left out, the seed chooses

    @property
    def command(self) -> str:
        """What runs it again."""
        command = f"python -m tests.sim --seed {self.seed} --steps {self.steps}"
        if self.faults is not None:
            command += " --faults " + (",".join(sorted(kind.value for kind in self.faults)) or "none")
        if self.upkeep:
            command += f" --upkeep {self.upkeep}"
        if self.scale is not None:
            command += f" --scale {SCALES.get(self.scale, self.scale)}"
        if self.aim is not None:
            command += f" --aim {','.join(self.aim)}"
        if self.intents:
            command += f" --intents {self.intents}"
        return command + "".join(f" --{name} {getattr(self, name)}" for name in COUNTS)


SCALES = {AS_IT_IS: "normal", TINY: "tiny"}
COUNTS = ("publishers", "nodes", "readers", "folders", "pinned", "keepers", "copies", "copykeepers")


# One of everything.
FLEET = Plan(0, 120, None, folders=1, pinned=1, keepers=2, copies=1)


class _Late(NamedTuple):
    """A write of which the answer was lost: when it arrives, at the latest."""

    step: int
    time: float
    actor: Actor
    what: str
    apply: Callable[[], object]


@dataclass
class Outcome:
    """What a run did."""

    trace: list[Event]
    seqs: int
    kills: int
    violation: BaseException | None = None
    faults: dict[str, int] = field(default_factory=dict)
    copied_blocks: int = 0  # by compactions, from run to run as they are
    late_manifests: int = 0  # written when what they name was gone or going


def simulate(plan: Plan) -> Outcome:
    """Run a plan to its end, or to the first violation."""
    with tempfile.TemporaryDirectory(prefix="sim-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None) as top:
        world = World(plan, Path(top))
        return world.run()


def report(plan: Plan, outcome: Outcome) -> str:
    """What was found, the last events before it, and how to see it again."""
    assert outcome.violation is not None
    what = "".join(traceback.format_exception(outcome.violation)[-1:])
    if not isinstance(outcome.violation, Violation):
        what = "".join(traceback.format_exception(outcome.violation))
    events = "\n".join(" ".join(map(str, event)) for event in outcome.trace[-_EVENTS_SHOWN:])
    return f"{events}\n{what}\nreplay: {plan.command}"


class World:
    """Everything that the actors of one run share."""

    def __init__(self, plan: Plan, top: Path) -> None:
        random = Random(plan.seed)
        self.plan, self.top = plan, top
        self.scheduler = Scheduler(Random(random.random()))
        self.faults = Faults(
            Random(random.random()), plan.faults if plan.faults is not None else swarm(random), plan.aim
        )
        self.trace: list[Event] = []
        self.history = History(MemoryStore("sim"))
        self.copies = [History(MemoryStore(f"copy{number + 1}"), self.history) for number in range(plan.copies)]
        for history in self.histories:
            history.memory.put(STORE_KEY, b"{}")
        self.kills = 0
        self._late: list[_Late] = []
        self._operations_left = plan.steps
        self.is_early = (plan.intents or ("late" if plan.seed % 3 else "early")) == "early"
        self.condemned_max = random.choice([2, 16, CONDEMNED_MAX])
        kinds = [
            (Publisher, plan.publishers, [self.history]),
            (Node, plan.nodes, [self.history]),
            (Reader, plan.readers, [self.history]),
            (FolderPublisher, plan.folders, [self.history]),
            (PinnedReader, plan.pinned, [self.history]),
            (Keeper, plan.keepers, [self.history]),
            (Replicator, 1, self.copies),
            (CopyNode, 1, self.copies),
            (CopyKeeper, plan.copykeepers, self.copies),
        ]
        self.actors: list[Actor] = [
            kind(self, f"{kind.__name__.lower()}{number}", Random(random.random()), history)
            for kind, count, histories in kinds
            for number, history in enumerate(histories * count, 1)
        ]
        self._working = self._unsettled = len(self.actors)
        self._by_thread: dict[int, Actor] = {}
        self.scale = plan.scale or random.choice([AS_IT_IS, TINY])
        self.copied_blocks = 0
        self.outside = top / "outside"
        self.outside.mkdir()
        (self.outside / "x").write_bytes(b"not ours")

    @property
    def histories(self) -> list[History]:
        return [self.history, *self.copies]

    def run(self) -> Outcome:
        for actor in self.actors:
            self.scheduler.add(actor.name, lambda actor=actor: self._body(actor))  # type: ignore[misc]
        violation: BaseException | None = None
        with self._local_points():
            try:
                self.scheduler.run()
                self.check_outside()
                for history in self.histories:
                    audit(history, self.scheduler.now, self.top / "audit")
            except Exception as error:
                violation = error
        counts: dict[str, int] = {}
        for event in self.trace:
            counts[event[5]] = counts.get(event[5], 0) + 1
        counts.pop("", None)
        late = sum(history.keeping.late_count for history in self.histories)
        return Outcome(self.trace, self.history.last, self.kills, violation, counts, self.copied_blocks, late)

    def _body(self, actor: Actor) -> None:
        self._by_thread[threading.get_ident()] = actor
        actor.work()
        self._working -= 1
        if not self._working:
            self._calm_down()
        while self._working:
            actor.clock.sleep(1.0)
        if not isinstance(actor, Node):
            actor.settle()
        self._unsettled -= 1
        while self._unsettled:
            actor.clock.sleep(1.0)
        # When nobody else changes the head any more.
        if isinstance(actor, Node):
            actor.settle()

    def _calm_down(self) -> None:
        """Faults stop; what was under way arrives."""
        self.faults.is_stopped = True
        for late in self._late:
            self._arrive(late)
        self._late = []

    def take_operation(self) -> bool:
        """Whether an actor may do one thing more."""
        self._operations_left -= 1
        return self._operations_left >= 0

    def step(self, actor: Actor) -> None:
        """Between two things that an actor does: all that must hold now is checked, and others go on."""
        self.check(actor)
        self.scheduler.pass_turn()
        due = [late for late in self._late if self._is_due(late)]
        self._late = [late for late in self._late if not self._is_due(late)]
        for late in due:
            self._arrive(late)

    def _is_due(self, late: _Late) -> bool:
        return late.step <= self.scheduler.step or late.time <= self.scheduler.now

    def check(self, actor: Actor) -> None:
        with self.judged():
            actor.check()
            self.check_outside()

    @contextlib.contextmanager
    def judged(self) -> Iterator[None]:
        """A violation in the body ends the run."""
        try:
            yield
        except Violation as violation:
            self.scheduler.fail(violation)

    def note(self, actor: Actor, verb: str, key: str, outcome: str, fault: Fault | None = None) -> None:
        self.trace.append((self.scheduler.step, actor.name, verb, key, outcome, fault.value if fault else ""))

    def later(self, steps: int, actor: Actor, what: str, apply: Callable[[], object]) -> None:
        self._late.append(_Late(self.scheduler.step + steps, self.scheduler.now + _LATE_S, actor, what, apply))

    def _arrive(self, late: _Late) -> None:
        self.note(late.actor, "late", late.what, self.attempt(late.apply))

    def attempt(self, apply: Callable[[], object]) -> str:
        return attempt_quietly(apply)

    def writer(
        self, deed: Deed, history: History, key: str, data: bytes, *, if_absent: bool, if_match: str | None
    ) -> Callable[[], str]:
        """A write that the model sees when it is applied, now or later."""

        def write() -> str:
            old = self._present(history, key)
            etag = history.memory.put(key, data, if_absent=if_absent, if_match=if_match)
            with self.judged():
                history.put(deed, key, old, data, etag, self.scheduler.now)
            return etag

        return write

    def deleter(self, deed: Deed, history: History, key: str, *, if_match: str | None) -> Callable[[], None]:
        def delete() -> None:
            is_there = self._present(history, key) is not None
            history.memory.delete(key, if_match=if_match)
            if is_there:
                with self.judged():
                    history.delete(deed, key, self.scheduler.now)

        return delete

    def _present(self, history: History, key: str) -> bytes | None:
        try:
            return bytes(history.memory.get_suffix(key, 1 << 40).data)
        except Missing:
            return None

    def kill(self, actor: Actor) -> None:
        """Kill an actor where it stands: its disk is as it is now, whatever is cleaned up on the way out."""
        self.kills += 1
        actor.freeze()
        raise Killed

    def check_outside(self) -> None:
        """I9: nothing outside the actors' own directories has changed."""
        expected = {self.outside.name, *(actor.name for actor in self.actors)}
        if set(os.listdir(self.top)) != expected or os.listdir(self.outside) != ["x"]:
            raise Violation(f"I9: something outside came or went: {os.listdir(self.top)} {os.listdir(self.outside)}")
        if (self.outside / "x").read_bytes() != b"not ours":
            raise Violation("I9: something outside was written")

    @contextlib.contextmanager
    def _local_points(self) -> Iterator[None]:
        """Renames and links are steps too, at which others go on and an actor may be killed."""
        with contextlib.ExitStack() as stack:
            for name in ("rename", "replace", "link"):
                real = getattr(os, name)
                stack.enter_context(mock.patch.object(os, name, self._local(name, real)))
            # Nothing here changes while it is read, so no tick of the kernel's clock need be waited for.
            stack.enter_context(mock.patch.object(pack_job, "stamp_clock_ns", return_value=1 << 62))
            # So that a short history gives upkeep something to do.
            for module, name, value in (
                (leveling, "FAN_OUT", 3),
                (leveling, "RATIO_RUNS_MIN", 4),
                (repacking, "SMALL_PACKS_MIN", 2),
                (collect, "CONDEMNED_MAX", self.condemned_max),
                (publish, "_INTENT_BYTES", -1 if self.is_early else 1 << 26),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            stack.enter_context(scaled(self.scale))
            stack.enter_context(mock.patch.object(RunBuilder, "copy", self._copying(RunBuilder.copy)))
            stack.enter_context(mock.patch.object(Holder, "take", self._taking(Holder.take)))
            stack.enter_context(mock.patch.object(Holder, "check_head", self._moving(Holder.check_head)))
            stack.enter_context(mock.patch.object(Holder, "end", self._ending(Holder.end)))
            yield

    def _copying(self, real: Callable[..., None]) -> Callable[..., None]:
        def copy(*arguments: object) -> None:
            self.copied_blocks += 1
            real(*arguments)

        return copy

    def _moving(self, real: Callable[..., None]) -> Callable[..., None]:
        """One who has to begin again does so with the head as it is then."""

        def call(holder: Holder, head: HeadState, *seqs: int, **options: bool) -> None:
            try:
                real(holder, head, *seqs, **options)
            except Moved:
                actor = self._by_thread.get(threading.get_ident())
                if actor is not None and actor.attempt is not None:
                    actor.attempt.start_seq = None
                raise

        return call

    def _taking(self, real: Callable[..., None]) -> Callable[..., None]:
        """The model is told of a lease from when its taking has returned."""

        begin_again = self._moving(real)

        def take(holder: Holder, head: HeadState, *seqs: int, holds_all: bool = False) -> None:
            actor = self._by_thread.get(threading.get_ident())
            begin_again(holder, head, *seqs, holds_all=holds_all)
            if actor is not None:
                history = self._history_of(holder)
                with self.judged():
                    history.keeping.claims.take(actor.name, holder.key, history.needs(holder.key, head, seqs))

        return take

    def _ending(self, real: Callable[..., None]) -> Callable[..., None]:
        def end(holder: Holder) -> None:
            actor = self._by_thread.get(threading.get_ident())
            if actor is not None and not actor.life.is_dead:
                self._history_of(holder).keeping.claims.give_back(holder.key)
            real(holder)

        return end

    def _history_of(self, holder: Holder) -> History:
        return next(history for history in self.histories if history.memory.url == holder._dataset.store.url)

    def _local(self, verb: str, real: Callable[..., None]) -> Callable[..., None]:
        def point(source: object, target: object, **options: object) -> None:
            actor = self._by_thread.get(threading.get_ident())
            if actor is None or actor.life.is_dead:
                real(source, target, **options)
                return
            self.step(actor)
            is_killed = self.faults.is_killed_here()
            if is_killed and self.faults.chance(0.5):
                self._local_kill(actor, verb, "before")
            real(source, target, **options)
            if is_killed:
                self._local_kill(actor, verb, "after")

        return point

    def _local_kill(self, actor: Actor, verb: str, when: str) -> None:
        self.note(actor, verb, "", f"killed {when}", Fault.KILL)
        self.kill(actor)
