"""The journals of upgrades in the store, read, begun and replaced by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from synclib.clock import now_text
from synclib.core.names import upgrade_key, upgrade_prefix
from synclib.core.rollout import JOURNAL_BYTES_MAX, Rollout, ids_of, parse_rollout
from synclib.engine.host import Host
from synclib.errors import Ambiguous, Conflict, Corrupt
from synclib.store.base import Store


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal as it was read."""

    rollout: Rollout
    etag: str


@dataclass(frozen=True, slots=True)
class Found:
    """``opened``: the newest journal, unless it is at its end; ``last``: its id in any case, empty for none;
    ``next_id``: of the one that may be begun."""

    opened: Entry | None
    last: str
    next_id: str


class Journal:
    """The journals of a store."""

    def __init__(self, store: Store, host: Host) -> None:
        self._store, self._host = store, host

    def find(self, role: str) -> Found:
        """What there is of a role, of one listing: whoever begins the next one that this names is told (by
        :meth:`create`) of any that was begun since, be it at work or at its end already."""
        prefix = upgrade_prefix()
        last, following = ids_of(role, [info.key.removeprefix(prefix) for info in self._store.list(f"{prefix}{role}-")])
        entry = self.read(last) if last else None
        return Found(None if entry is None or entry.rollout.state.is_final else entry, last, following)

    def open_of(self, role: str) -> Entry | None:
        """The newest journal of a role that is not at its end."""
        return self.find(role).opened

    def newest(self, problem: Callable[[Corrupt], None] | None = None) -> Iterator[Rollout]:
        """The last rollout of each role. ``problem`` is told of those that are damaged, which are passed over; None:
        they are raised."""
        names = [info.key.removeprefix(upgrade_prefix()) for info in self._store.list(upgrade_prefix())]
        for role in sorted({name.rpartition("-")[0] for name in names} - {""}):
            try:
                last, _ = ids_of(role, names)
                entry = self.read(last) if last else None
            except Corrupt as error:
                if problem is None:
                    raise
                problem(error)
                continue
            if entry is not None:
                yield entry.rollout

    def snapshots_needed(self) -> set[str]:
        """The snapshots that upgrades of any role need which are not at their end: to go on, or to go back."""
        needed: set[str] = set()
        for rollout in self.newest():
            if not rollout.state.is_final:
                needed |= {spec.snapshot for step in rollout.steps for spec in (step.old, step.new)}
        return needed - {""}

    def read(self, name: str, etag: str | None = None) -> Entry | None:
        """A journal; None while it has ``etag``."""
        key = upgrade_key(name)
        found = self._store.get(key, size_max=JOURNAL_BYTES_MAX, if_none_match=etag)
        return None if found is None else Entry(parse_rollout(found.data, key), found.etag)

    def create(self, rollout: Rollout) -> Entry:
        """Conflict where another began one since its id was found."""
        try:
            return self._put(rollout, None)
        except Conflict as error:
            other = self.read(rollout.id)
            by = "" if other is None else f" by {other.rollout.driver or 'another'}, and is {other.rollout.state}"
            raise Conflict(
                f"{rollout.id} was begun{by}: two upgrades at once",
                hint="nothing was changed here: wait for it, or say the same command again to go on with it",
                key=upgrade_key(rollout.id),
            ) from error

    def replace(self, former: Entry, rollout: Rollout) -> Entry:
        """Conflict where it is no longer as it was read."""
        return self._put(rollout, former.etag)

    def _put(self, rollout: Rollout, etag: str | None) -> Entry:
        key = upgrade_key(rollout.id)
        rollout = rollout.model_copy(update={"at": now_text(self._host.clock)})
        body = rollout.model_dump_json().encode()
        try:
            return Entry(rollout, self._store.put(key, body, if_absent=etag is None, if_match=etag))
        except (Ambiguous, Conflict):
            # The answer to a first try may have been lost: is it ours that stands there?
            found = self.read(rollout.id)
            if found is not None and found.rollout == rollout:
                return found
            raise
