"""Those who keep house: compaction, collection, repacking, reverting, tagging, verifying, copying."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import no_progress
from synclib.engine.repack import RepackOptions, repack_dataset
from synclib.engine.replicate import replicate
from synclib.engine.revert import revert
from synclib.engine.tags import delete_tag, set_tag
from synclib.engine.verify import VerifyOptions, verify
from synclib.errors import BoxlinkError, Conflict, Missing
from synclib.lazy.dataset import Dataset
from tests.sim.actor import Actor
from tests.sim.history import ROOT, Attempt, History
from tests.sim.scheduler import Violation
from tests.sim.store import SimStore

if TYPE_CHECKING:
    from tests.sim.world import World

_DAY_S = 86_400.0
_READ_FAULTS = {"flipped", "truncated"}


class Keeper(Actor):
    """Does one thing after the other to the dataset, some kinds of them only: the seed says which."""

    def __init__(self, world: World, name: str, random: Random, history: History) -> None:
        super().__init__(world, name, random, history)
        every = self.deeds()
        wanted = [deed for deed in every if deed.__name__ in world.plan.upkeep.split(",")]
        self.chosen = wanted or random.sample(every, random.randrange(2, len(every) + 1))

    def deeds(self) -> list[Callable[[], object]]:
        return [
            self.compact,
            self.collect,
            self.drop,
            self.repack,
            self.revert,
            self.tag,
            self.untag,
            self.verify,
            self.wait,
        ]

    def operate(self) -> None:
        if self.history.last:
            self.random.choice(self.chosen)()

    def try_to(self, what: str, call: Callable[[], object]) -> BoxlinkError | None:
        """What it failed with."""
        error = None
        try:
            self.engine(call)
        except BoxlinkError as failed:
            error = failed
        self.world.note(self, what, "", type(error).__name__ if error is not None else "ok")
        return error

    def compact(self) -> None:
        is_full, budget = self.random.random() < 0.4, self.random.choice([None, 3000])
        self.try_to(
            "compact",
            lambda: compact(self.dataset, self.host, no_progress, is_full=is_full, budget_bytes=budget),
        )

    def collect(self, retention: Retention | None = None, dataset: Dataset | None = None) -> BoxlinkError | None:
        self.retention = retention or Retention()
        error = self.try_to(
            "collect",
            lambda: collect(dataset or self.dataset, self.host, self.retention or Retention(), None, no_progress),
        )
        self.retention = None
        return error

    def drop(self) -> None:
        """A collection that does not keep all seqs."""
        self.collect(self.random.choice([Retention(last=1), Retention(last=3), Retention(last=1, daily=2)]))

    def repack(self) -> None:
        options = RepackOptions(budget_bytes=self.random.choice([500, 5000]))
        self.try_to("repack", lambda: repack_dataset(self.dataset, self.host, None, options, no_progress))

    def revert(self) -> None:
        # Of most seqs that there were nothing is left.
        alive = sorted({version.seq for version in self.history.keeping.alive.values()})
        seq = self.random.choice(alive) if self.random.random() < 0.7 else self.seq_by_name() or self.history.last
        attempt = self.attempt = Attempt(self.name, {}, {}, target=seq)
        error = self.try_to("revert", lambda: revert(self.dataset, self.host, seq))
        if error is not None and attempt.committed and not attempt.may_be_committed:
            raise self.fail(f"I5: {self.name} made seq {attempt.committed} and says that it failed")

    def tag(self) -> None:
        name, seq = f"{self.name}-{self.random.randrange(2)}", self.seq_by_name()
        tagged = self.history.keeping.tagged
        tagged.pop(name, None)
        done: list[int] = []
        self.try_to(f"tag {name} {seq}", lambda: done.append(set_tag(self.dataset, self.host, name, seq).seq))
        if done:
            tagged[name] = done[0]
            if not self.history.keeping.is_alive(done[0]):
                raise self.fail(f"I3: {self.name} could tag seq {done[0]}, which is being collected")

    def untag(self) -> None:
        name = f"{self.name}-{self.random.randrange(2)}"
        self.history.keeping.tagged.pop(name, None)
        self.try_to(f"untag {name}", lambda: delete_tag(self.dataset, name))

    def verify(self) -> None:
        """Nothing is ever damaged at rest here: what verify says is damaged is being collected, or was read wrong."""
        seq = self.seq_by_name()
        damage: list[tuple[str, str]] = []

        def run() -> None:
            manifest = self.dataset.manifest_at(seq)
            found = verify(self.dataset, manifest, None, VerifyOptions(is_data=True), no_progress)
            damage.extend(found.damage)

        self.try_to(f"verify {seq}", run)
        is_read_right = all(kind.value not in _READ_FAULTS for kind in self.world.faults.kinds)
        if damage and is_read_right and self.history.keeping.is_alive(seq or self.history.last):
            raise self.fail(f"I3: {self.name} finds seq {seq} damaged: {damage}")

    def wait(self) -> None:
        """Days go by, whatever the others are in the middle of."""
        seconds = self.random.choice([0.6, 1.1, 2.5]) * _DAY_S
        self.world.note(self, "wait", str(seconds), "")
        self.world.scheduler.stall(self.random.randrange(1, 200), seconds)

    def fail(self, what: str) -> BaseException:
        self.world.scheduler.fail(Violation(what))
        return AssertionError

    def settle(self) -> None:
        if self.history.last and (error := self.collect()) is not None:
            self.fail(f"I8: {self.name} cannot collect: {error.kind}: {error.message} {error.key}")


class CopyKeeper(Keeper):
    """Keeps a copy: makes no seqs of its own there."""

    def deeds(self) -> list[Callable[[], object]]:
        return [self.compact, self.collect, self.drop, self.tag, self.verify, self.wait]


class Replicator(Keeper):
    """Carries the dataset to a copy, now and then. Its own store is the source; its copy's is ``target``."""

    def __init__(self, world: World, name: str, random: Random, copy: History) -> None:
        self.copy = copy
        super().__init__(world, name, random, world.history)

    def start(self) -> None:
        super().start()
        store = SimStore(self.world, self, self.copy, self.life)
        self.target = Dataset(self.retry(store), ROOT)

    def deeds(self) -> list[Callable[[], object]]:
        return [self.replicate, self.replicate, self.wait]

    def replicate(self) -> BoxlinkError | None:
        return self.try_to("replicate", lambda: replicate(self.dataset, self.target, self.host, None, no_progress))

    def settle(self) -> None:
        """A copy that is being collected has to be collected to the end first, when all leases there are over."""
        error: BoxlinkError | None = None
        while not self.history.last and self.world.plan.publishers:
            self.clock.sleep(1.0)
        for _ in range(4):
            if not self.history.last or (error := self.replicate()) is None:
                return
            # Missing: of what the source still listed its own collector was just deleting the rest.
            if not isinstance(error, Conflict | Missing):
                break
            self.world.scheduler.stall(20, 1.1 * _DAY_S)
            self.collect(dataset=self.target)
        if error is not None:
            self.fail(f"I8: {self.name} cannot replicate: {error.kind}: {error.message} {error.key}")
