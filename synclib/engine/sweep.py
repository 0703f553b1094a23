"""A collector's right to delete: a lease that says in the store that it sweeps.

A delete has no condition that an object of the same name and bytes would not meet again, and a replication brings
objects back under their names. So what one sweep may have in hand must not come back before that sweep has ended: it
stays on the list of the condemned while any other sweep stands, and nobody relies on what is on the list (decision
0005).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

from synclib.core.names import intent_key
from synclib.engine.host import Host
from synclib.engine.lease import Holder
from synclib.engine.leases import HeldLease, sweeps_under_way
from synclib.engine.objects import StoredObject
from synclib.errors import Fenced
from synclib.lazy.dataset import Dataset
from synclib.lazy.side_by_side import run_side_by_side

# How long a sweep deletes without looking whether its lease stands.
_LOOK_S = 60.0
# So many deletes are under way at most: the threads that a collection has.
_AT_ONCE = 16


class Sweep:
    """One collector's. ``end`` must be called, whatever came before."""

    def __init__(self, dataset: Dataset, host: Host) -> None:
        self._dataset, self._host = dataset, host
        self._holder: Holder | None = None
        self._looked_at = (0.0, 0)  # by both clocks: one stands still while the machine sleeps, the other may be set
        self._is_under_way = False  # a delete of which nobody knows whether it is done

    @property
    def is_begun(self) -> bool:
        return self._holder is not None

    def begin(self) -> None:
        """Say that we sweep. Whoever replaces the head after that, as we must before we read the list, knows it."""
        if self._holder is None:
            holder = Holder(self._dataset, self._host, intent_key)
            holder.take_sweep()
            self._holder = holder
            self._looked_at = self._now()

    def delete(self, items: Sequence[StoredObject], executor: Executor | None) -> Iterator[int]:
        """Delete objects, some at once where there are threads for it; says how many are gone after each batch.

        Fenced when another collector has ended us, which were silent for longer than a lease: that is looked at before
        each batch, which takes as long as one delete may take.
        """
        size = _AT_ONCE if executor is not None else 1
        for first in range(0, len(items), size):
            keys = [item.key for item in items[first : first + size]]
            self.look()
            self._is_under_way = True
            run_side_by_side((partial(self._dataset.store.delete, key) for key in keys), executor, size)
            self._is_under_way = False
            yield first + len(keys)

    def look(self) -> None:
        """See whether we may go on, if that was long ago."""
        before, now = self._looked_at, self._now()
        if self._holder is None or (now[0] - before[0] <= _LOOK_S and abs(now[1] - before[1]) <= _LOOK_S * 10**9):
            return
        try:
            self._holder.renew()
            self._holder.check()
        except Fenced as error:
            error.hint = "run it again; if this store is a copy, replicate into it after that"
            raise
        self._looked_at = now

    def others(self) -> list[HeldLease]:
        """The sweeps of others which may have in hand what is on the list."""
        own = self._holder.key if self._holder is not None else ""
        return sweeps_under_way(self._dataset, self._host.clock.wall_ns(), own=own)

    def end(self) -> None:
        """Give the lease back. It stays, to expire, where a delete failed: that may still arrive."""
        if self._holder is not None and not self._is_under_way:
            self._holder.end()

    def _now(self) -> tuple[float, int]:
        return self._host.clock.monotonic(), self._host.clock.wall_ns()
