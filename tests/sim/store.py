"""The store as one actor sees it: each call is a step, may go wrong, and is seen by the model."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from synclib.errors import Ambiguous, BoxlinkError, Conflict, Invalid, Missing, Unavailable
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo
from synclib.store.outcome import NotApplied
from tests.sim.faults import Fault
from tests.sim.history import HEAD, OBJECTS, Deed, History
from tests.sim.scheduler import Killed

if TYPE_CHECKING:
    from tests.sim.actor import Actor
    from tests.sim.world import World

T = TypeVar("T")
_Page = tuple[tuple[ObjectInfo, ...], bool]  # and whether it breaks off
_LATE_STEPS = 60
_PAGE = 2


@dataclass
class Life:
    """One incarnation of an actor."""

    is_dead: bool = False


class SimStore:
    """One incarnation's connection to a store. Once it is killed every call raises Killed, and does nothing."""

    def __init__(self, world: World, actor: Actor, history: History, life: Life) -> None:
        self.url = history.memory.url
        self._world, self._actor, self._history, self._life = world, actor, history, life
        self._memory = history.memory

    @property
    def _is_own(self) -> bool:
        """Whether it is the store that its actor works on; not the one that it copies from or to."""
        return self._history is self._actor.history

    @property
    def _deed(self) -> Deed:
        is_held = self._history.keeping.claims.is_held_by(self._actor.name, self._world.scheduler.now)
        return replace(self._actor.deed, is_held=is_held)

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        def read() -> Fetched | None:
            return self._memory.get(key, size_max=size_max, if_none_match=if_none_match)

        def damage(fault: Fault, fetched: Fetched | None) -> Fetched | None:
            return fetched and Fetched(self._damaged(fault, fetched.data), fetched.etag, fetched.size)

        def former(fetched: Fetched | None) -> Fetched | None:
            heads = self._history.heads
            if len(heads) < 2 or heads[-2][1] == if_none_match:
                return fetched
            data, etag = heads[-2]
            return Fetched(data, etag, len(data))

        try:
            found = self._call("get", key, read, damage=damage, former=former)
        except Missing:
            if key == HEAD and self._is_own:
                self._actor.saw_head(None)
            raise
        if key == HEAD and found is not None and self._is_own:
            self._actor.saw_head(found.etag)
        return found

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        def damage(fault: Fault, found: list[Buffer]) -> list[Buffer]:
            at = self._world.faults.number(len(found)) if found else 0
            return [self._damaged(fault, data) if number == at else data for number, data in enumerate(found)]

        found = self._call("ranges", key, lambda: self._memory.get_ranges(key, ranges), damage=damage)
        self._check_carried("read", key, sum(map(len, found)))
        return found

    def get_suffix(self, key: str, length: int) -> Fetched:
        def damage(fault: Fault, found: Fetched) -> Fetched:
            return Fetched(self._damaged(fault, found.data), found.etag, found.size)

        return self._call("suffix", key, lambda: self._memory.get_suffix(key, length), damage=damage)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        data = body.read_bytes() if isinstance(body, Path) else bytes(body)
        if not isinstance(body, Path):
            self._check_carried("write", key, len(data))
        write = self._world.writer(self._deed, self._history, key, data, if_absent=if_absent, if_match=if_match)
        shown = f"{key} {len(data)} {zlib.crc32(data):08x}"
        return self._call("put", shown, write, is_conditional=if_absent or if_match is not None, key=key)

    def _check_carried(self, verb: str, key: str, size: int) -> None:
        """I10; a head and manifests are as long as their chain, whatever the data."""
        if key.startswith(OBJECTS):
            with self._world.judged():
                self._world.scale.check_carried(self._actor.name, verb, key, size)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        delete = self._world.deleter(self._deed, self._history, key, if_match=if_match)
        self._call("delete", key, delete, is_conditional=if_match is not None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """In pages, so that others change it meanwhile."""
        while True:
            page, is_broken = self._page(prefix, after)
            yield from page
            if is_broken:
                raise Unavailable("the listing broke off", key=prefix)
            if len(page) < _PAGE:
                return
            after = page[-1].key

    def _page(self, prefix: str, after: str) -> _Page:
        def read() -> _Page:
            return tuple(itertools.islice(self._memory.list(prefix, after=after), _PAGE)), False

        def cut(_: Fault, page: _Page) -> _Page:
            return page[0][:1], True

        return self._call("list", prefix, read, damage=cut)

    def _call(
        self,
        verb: str,
        shown: str,
        apply: Callable[[], T],
        *,
        key: str | None = None,
        is_conditional: bool = False,
        damage: Callable[[Fault, T], T] | None = None,
        former: Callable[[T], T] | None = None,
    ) -> T:
        """One step: others go first, then this call, or what the faults make of it."""
        world, actor, key = self._world, self._actor, key or shown
        self._check_alive()
        world.step(actor)
        self._check_alive()
        is_followed = key == HEAD and actor.is_following
        fault = world.faults.draw(actor.name, verb, key, is_conditional=is_conditional, is_followed=is_followed)
        try:
            result = self._faulty(fault, verb, key, apply, is_conditional, damage, former)
        except BaseException as error:
            world.note(actor, verb, shown, type(error).__name__, fault)
            raise
        world.note(actor, verb, shown, "ok", fault)
        return result

    def _faulty(
        self,
        fault: Fault | None,
        verb: str,
        key: str,
        apply: Callable[[], T],
        is_conditional: bool,
        damage: Callable[[Fault, T], T] | None,
        former: Callable[[T], T] | None,
    ) -> T:
        world, actor = self._world, self._actor
        lost: Unavailable = (
            Ambiguous("the answer was lost", key=key) if is_conditional else Unavailable("lost", key=key)
        )
        attempt = actor.attempt if key == HEAD and verb == "put" and self._is_own else None
        match fault:
            case Fault.BEFORE:
                raise lost
            case Fault.BURST:
                raise NotApplied("slow down", key=key)
            case Fault.REFUSED:
                raise Invalid("the credentials have expired", key=key)
            case Fault.CONFLICT:
                raise Conflict("another write was under way", key=key)
            case Fault.AFTER | Fault.OWN_CONFLICT | Fault.LATE:
                if attempt is not None:
                    attempt.may_be_committed = True
                if fault is Fault.LATE:
                    world.later(world.faults.number(_LATE_STEPS), actor, f"{verb} {key}", apply)
                    raise lost
                world.attempt(apply)
                raise Conflict("it is no longer what it was", key=key) if fault is Fault.OWN_CONFLICT else lost
            case Fault.KILL:
                if world.faults.chance(0.5):
                    world.attempt(apply)
                world.kill(actor)
            case Fault.STALL:
                world.scheduler.stall(*world.faults.stall())
                self._check_alive()
            case Fault.SLOW if world.faults.chance(0.5):
                actor.clock.sleep(world.faults.slowness_s())
            case Fault.SLOW:
                result = apply()
                actor.clock.sleep(world.faults.slowness_s())
                return result
        result = apply()
        if fault is Fault.STALE and former is not None:
            return former(result)
        is_damaged = fault in (Fault.TRUNCATED, Fault.FLIPPED, Fault.BROKEN_LIST)
        return damage(fault, result) if is_damaged and fault is not None and damage is not None else result

    def _damaged(self, fault: Fault, data: Buffer) -> bytes:
        faults, plain = self._world.faults, bytes(data)
        if not plain:
            return plain
        at = faults.number(len(plain))
        if fault is Fault.TRUNCATED:
            return plain[:at]
        return plain[:at] + bytes([plain[at] ^ 1 << faults.number(8)]) + plain[at + 1 :]

    def _check_alive(self) -> None:
        if self._life.is_dead:
            raise Killed


def attempt_quietly(apply: Callable[[], object]) -> str:
    """Do what nobody hears the answer of; what came of it, for the trace."""
    try:
        apply()
    except BoxlinkError as error:
        return type(error).__name__
    return "ok"
