"""A node: the daemon's rounds over one directory with its markers, and what must hold there at every step."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from synclib.core import names
from synclib.core.entry import Kind
from synclib.disk.held import Held
from synclib.disk.markers import Markers
from synclib.engine.follow import Follower
from synclib.errors import BoxlinkError, Invalid, Missing, Partial
from synclib.store.meter import Meter
from tests.sim.edits import edited
from tests.sim.history import History
from tests.sim.publishing import Publishing
from tests.sim.scheduler import Violation
from tests.sim.trees import Tree, difference, parents, read_tree, write_tree

if TYPE_CHECKING:
    from tests.sim.world import World

_POLL_S = 10.0
_SETTLE_S = 150.0  # the longest pause after an error is 60 s


class Node(Publishing):
    """Follows: the daemon's rounds over one directory with its markers."""

    is_publishing = True

    def __init__(self, world: World, name: str, random: Random, history: History) -> None:
        self.markers = Markers(world.top / name / "data/covers")
        self.held = Held(world.top / name / "data/covers")
        self.floor = 0
        self.edited_under: bytes | None = None  # a synch.down that the user has made wrong
        self.put_here: Tree = {}  # by the user
        self.follower: Follower
        super().__init__(world, name, random, history)
        self.ask("")

    @property
    def is_following(self) -> bool:  # type: ignore[override]
        return self.attempt is None

    def start(self) -> None:
        super().start()
        self.follower = Follower(
            self.directory, self.retrying, None, self.host, _Silent(), _POLL_S, lambda: False, Meter()
        )

    def ask(self, text: str) -> None:
        self.world.note(self, "ask", text, "")
        (self.directory / names.ACTIVE).write_text(text)

    def operate(self) -> None:
        chance = self.random.random()
        if chance < 0.08:
            seq = self.seq_by_name()
            self.ask("" if seq is None else f"seq={seq}")
        elif chance < 0.12:
            self.world.note(self, "ask", "nothing", "")
            self.markers.remove(names.ACTIVE)
        elif chance < 0.17:
            self.ask("")
        elif chance < 0.22:
            self.start()
        elif chance < 0.32 and self.is_publishing:
            self.edit()
        self.round()

    def edit(self) -> None:
        """The user changes files here, and asks for them to be published."""
        self.edited_under = self._down_identity()
        tree = edited(self.random, read_tree(self.directory), self.clock.wall_ns())
        self.history.know(tree)
        former = read_tree(self.directory)
        self.put_here.update({path: thing for path, thing in tree.items() if former.get(path) != thing})
        write_tree(self.directory, tree)
        (self.directory / names.UP).write_text("")
        changed = sorted(path for path in {*former, *tree} if former.get(path) != tree.get(path))
        self.world.note(self, "edit", repr(changed), "")

    def round(self) -> BoxlinkError | None:
        former = self.base
        attempt = self.begin(self.base) if self.markers.up_identity() is not None else None
        error = self.engine(self.follower.round)
        self.world.note(self, "round", "", "ok" if error is None else type(error).__name__)
        history = self.history
        stood = [history.tree(seq) for seq in range(1, history.last + 1)]
        if attempt is not None and error is not None and self.markers.up_identity() is not None:
            self.judge(lambda: self.check_failed(attempt))
        published = self.bases_after(attempt)[1:] if attempt is not None else []
        self.judge(lambda: self.check_base([former, *published, *stood]))
        return error

    def after_kill(self) -> None:
        history = self.history
        stood = [history.tree(seq) for seq in range(1, history.last + 1)]
        published = self.bases_after(self.attempt)[1:] if self.attempt is not None else []
        self.judge(lambda: self.check_base([self.base, *published, *stood]))

    def _down_identity(self) -> bytes | None:
        """What tells one synch.down from another; it says when it was written."""
        try:
            return (self.directory / names.DOWN).read_bytes()
        except FileNotFoundError:
            return None

    def check(self) -> None:
        self._check_down()
        self._check_floor()
        self._check_whole()

    def _check_down(self) -> None:
        identity = self._down_identity()
        if identity is None or identity == self.edited_under:
            return
        down = self.markers.down()
        if down is None:
            raise Violation(f"I1: {self.name} has a synch.down that cannot be read")
        history = self.history
        if not 0 < down.seq <= history.last or down.digest != history.seqs[down.seq - 1].digest:
            raise Violation(f"I1: {self.name} says that seq {down.seq} {down.digest} stands there: there is none")
        there = history.tree(down.seq)
        found = self._without_strangers(read_tree(self.directory), there)
        if found != there:
            raise Violation(f"I1: {self.name} says seq {down.seq}, but\n{difference(there, found)}")

    def _without_strangers(self, found: Tree, there: Tree) -> Tree:
        """What stands here but for what the user put, which a restore leaves alone where the seq has nothing."""
        extra = {path for path, thing in found.items() if path not in there and self.put_here.get(path) == thing}
        around = {parent for path in extra for parent in parents(path)} - there.keys()
        return {path: thing for path, thing in found.items() if path not in extra | around}

    def _check_floor(self) -> None:
        """I2; a seq that is asked for by name may be an older one."""
        active = self.markers.active()
        state = self.held.read()
        if state is None or state.restoring is not None:
            return
        if state.seq < self.floor and (active is None or active.seq is None):
            raise Violation(f"I2: {self.name} went back from seq {self.floor} to {state.seq}")
        self.floor = state.seq

    def _check_whole(self) -> None:
        """I6: whatever stands under a name is all of what somebody once put there."""
        for path, thing in read_tree(self.directory).items():
            if thing.kind == Kind.FILE and thing.data not in self.history.known[path]:
                raise Violation(f"I6: {self.name} has {path!r} with bytes that no seq has there: {thing.data[:40]!r}")

    def settle(self) -> None:
        """I8: the head, or what is asked for by name, within a bounded time."""
        if self.markers.active() is None:
            self.ask("")
        deadline = self.clock.monotonic() + _SETTLE_S
        while not self.is_settled() or any(not actor.is_settled() for actor in self.world.actors):
            if self.clock.monotonic() > deadline and not self.is_settled():
                error = self.follower.error
                why = "" if error is None else f"{error.kind}: {error.message}"
                self.world.scheduler.fail(Violation(f"I8: {self.name} does not come to the head: {why}"))
            self.clock.sleep(1.0)
            if self.follower.is_due():
                self.attempt = None
                self.round()
            if isinstance(self.follower.error, Partial):
                self._remove_strangers()
            # Of a first restore that came to nothing a publish would make the end of all that is not here.
            is_refused = isinstance(self.follower.error, Invalid) and self.held.is_part()
            if isinstance(self.follower.error, Missing) or is_refused:
                self._give_up()
            self.world.check(self)

    def _give_up(self) -> None:
        """What is asked for is no longer kept, a seq by name or what an edited directory was; or it is refused."""
        if (down := self.markers.down()) is not None and self._down_identity() == self.edited_under:
            write_tree(self.directory, self.history.tree(down.seq))
            self.edited_under = None
        self.markers.remove(names.UP)
        self.ask("")

    def _remove_strangers(self) -> None:
        """The user takes away what stands in the way, as the error says."""
        active = self.markers.active()
        there = self.history.tree((active and active.seq) or self.history.last)
        tree = read_tree(self.directory)
        extra = tree.keys() - self._without_strangers(tree, there).keys()
        write_tree(self.directory, {path: thing for path, thing in tree.items() if path not in extra})

    def is_settled(self) -> bool:
        active, down = self.markers.active(), self.markers.down()
        if active is None or down is None or down.reason or self.markers.up_identity() is not None:
            return False
        return down.seq == (active.seq or self.history.last) and self._down_identity() != self.edited_under


class CopyNode(Node):
    """Follows a copy, which only a replication changes."""

    is_publishing = False


class _Silent:
    """A log that nobody reads."""

    def info(self, event: str, **fields: object) -> None:
        """Nothing."""

    warning = info
