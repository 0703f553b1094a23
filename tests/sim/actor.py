"""A machine of the simulation: the engine as it is, on a disk and with a connection of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, TypeVar

from synclib.clock import SeededEntropy
from synclib.core.retention import Retention
from synclib.engine.host import Host
from synclib.lazy.dataset import Dataset
from synclib.store.meter import Meter, MeteredStore
from synclib.store.retry import RetryStore
from tests.sim.history import ROOT, Attempt, Deed, History
from tests.sim.scheduler import ActorClock, Killed
from tests.sim.store import Life, SimStore
from tests.sim.trees import Tree

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")
_THINKS_S = 5.0


class Actor:
    """A machine: its disk outlives its incarnations, of which each has a connection of its own.

    ``history``: of the store that it works on.
    """

    is_following = False  # whether it gets the head by a way that may have a cache in it

    def __init__(self, world: World, name: str, random: Random, history: History) -> None:
        self.world, self.name, self.random, self.history = world, name, random, history
        self.clock = ActorClock(world.scheduler, random.choice([0.0, -3600.0, 100.0]))
        self.place = world.top / name
        self.frozen = self.place / "frozen"
        self.directory = self.place / "data/covers"
        self.directory.mkdir(parents=True)
        self.host = Host(
            name,
            self.clock,
            SeededEntropy(random.randrange(1 << 32)),
            self.place / "state",
            self.place / "cache",
        )
        self.attempt: Attempt | None = None
        self.retention: Retention | None = None
        self.base: Tree | None = None
        self.life: Life
        self.store: SimStore
        self.dataset: Dataset
        self.start()

    def start(self) -> None:
        """A new incarnation."""
        self.life = Life()
        self.retention = None
        self.store = SimStore(self.world, self, self.history, self.life)
        self.retrying = self.retry(self.store)
        self.dataset = Dataset(self.retrying, ROOT)

    def retry(self, store: SimStore) -> RetryStore:
        """As in synclib/store/open.py."""
        return RetryStore(MeteredStore(store, Meter()), self.clock, self.host.entropy)

    @property
    def deed(self) -> Deed:
        return Deed(self.name, self.attempt, self.retention)

    def work(self) -> None:
        while self.world.take_operation():
            self.clock.sleep(self.random.expovariate(1 / _THINKS_S))
            self.attempt = None
            try:
                self.operate()
            except Killed:
                self.thaw()
                self.start()
                self.after_kill()
            self.world.check(self)
            self.judge(self.world.check_outside)

    def operate(self) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Faults are over: show that all is well."""

    def is_settled(self) -> bool:
        """Whether nothing more will happen by itself."""
        return True

    def after_kill(self) -> None:
        """What has to be looked at anew."""

    def check(self) -> None:
        """What must hold at every step; Violation where it does not."""

    def freeze(self) -> None:
        """Keep the disk as it is at this moment."""
        self.life.is_dead = True
        for name in ("data", "state", "cache"):
            if (self.place / name).exists():
                shutil.copytree(self.place / name, self.frozen / name, symlinks=True)

    def thaw(self) -> None:
        """Put the disk back as it was at that moment."""
        for name in ("data", "state", "cache"):
            if (self.place / name).exists():
                shutil.rmtree(self.place / name)
            if (self.frozen / name).exists():
                (self.frozen / name).rename(self.place / name)
        self.frozen.rmdir()

    def saw_head(self, etag: str | None) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.start_seq is None:
            attempt.start_seq = self.history.seq_of(etag) if etag is not None else 0

    def engine(self, call: Callable[[], T]) -> T:
        """Let the engine work. What it does with an exception does not matter to one who is dead."""
        try:
            return call()
        finally:
            if self.life.is_dead:
                raise Killed

    def judge(self, check: Callable[[], None]) -> None:
        with self.world.judged():
            check()

    def seq_by_name(self) -> int | None:
        """Some seq that there is, or None for the newest."""
        seq = self.random.randrange(self.history.last + 1)
        return seq or None
