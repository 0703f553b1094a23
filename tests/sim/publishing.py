"""What is checked of whoever publishes: what it says of itself (I5), and its base."""

from __future__ import annotations

import os
from collections.abc import Sequence

from synclib.disk.base import BaseFile
from synclib.engine.publish import PublishResult
from synclib.lazy.run_reader import Request
from synclib.store.base import Buffer
from tests.sim.actor import Actor
from tests.sim.history import ROOT, Attempt, History, Kept, below
from tests.sim.scheduler import Violation
from tests.sim.trees import Tree, difference, leading_to, read_tree


class Publishing(Actor):
    """One that publishes its directory, as the dataset or as the folder ``prefix`` of it."""

    prefix = b""

    above: Tree = {}  # noqa: RUF012 - never changed in place

    def begin(self, base: Tree | None) -> Attempt:
        """A publish of the directory as it is now."""
        mine = read_tree(self.directory)
        if self.prefix:
            mine = {self.prefix + b"/" + path: thing for path, thing in mine.items()}
        self.attempt = Attempt(self.name, base, mine, self.prefix, self.above)
        self.history.know(mine)
        return self.attempt

    def check_base(self, allowed: list[Tree | None]) -> None:
        """That what the engine believes the directory was is one of these; from now on the model believes it too."""
        base_file = BaseFile(self.host.state, self.store.url, ROOT, os.fsencode(self.directory), self.prefix)
        base = base_file.read()
        runs = _BaseRuns(self.history, base_file)
        whole = None if base is None else self.history.read(base.runs, runs)
        found = None if whole is None else below(whole, self.prefix)
        if found not in allowed:
            nearest = allowed[-1] or {}
            raise Violation(f"{self.name}'s base is not what it may be\n{difference(nearest, found or {})}")
        self.base, self.above = found, leading_to(whole or {}, self.prefix)

    def check_published(self, attempt: Attempt, done: PublishResult) -> None:
        """A publish that says it went well did what it says (I5)."""
        history = self.history
        if done.skipped:
            raise Violation(f"{self.name} skipped {done.skipped}")
        if not 0 <= done.seq <= history.last:
            raise Violation(f"I5: {self.name} was told seq {done.seq}, the head is at {history.last}")
        if done.is_new != bool(attempt.committed):
            raise Violation(f"I5: {self.name} says is_new={done.is_new}, it made seq {attempt.committed}")
        if done.seq < attempt.committed:
            raise Violation(f"I5: {self.name} made seq {attempt.committed} and says {done.seq}")
        there = history.tree(done.seq)
        if done.seq and done.digest != history.seqs[done.seq - 1].digest:
            raise Violation(f"I4: {self.name} says digest {done.digest} of seq {done.seq}")
        if not done.is_new and attempt.result(history, done.seq) != there:
            what = difference(attempt.result(history, done.seq), there)
            raise Violation(f"I5: {self.name}'s changes are not in seq {done.seq}, it says there are none\n{what}")
        if done.is_whole and attempt.mine != below(there, self.prefix):
            raise Violation(f"I1: {self.name} is not all of seq {done.seq}\n{difference(there, attempt.mine)}")

    def check_failed(self, attempt: Attempt) -> None:
        """A publish that says it failed has not committed, unless an answer was lost (I5)."""
        if attempt.committed and not attempt.may_be_committed:
            raise Violation(f"I5: {self.name} made seq {attempt.committed} and says that it failed")

    def bases_after(self, attempt: Attempt) -> list[Tree | None]:
        """What the base may be after a publish that did not end well."""
        history = self.history
        is_in = attempt.committed or any(
            attempt.result(history, seq) == history.tree(seq) for seq in range(history.last + 1)
        )
        return [attempt.base, attempt.mine] if is_in else [attempt.base]


class _BaseRuns:
    """Runs that the store has or had, or those that only the publisher has."""

    is_far = False

    def __init__(self, history: History, base_file: BaseFile) -> None:
        self._kept, self._runs = Kept(history.objects), base_file.runs

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        return [self.get_ranges(*request) for request in requests]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        own = self._runs / key.rpartition("/")[2]
        if own.exists():
            data = own.read_bytes()
            return [data[start:stop] for start, stop in ranges]
        return self._kept.get_ranges(key, ranges)

    def drop(self, key: str) -> bool:
        return False
