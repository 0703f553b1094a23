"""Holding an intent or a pin: taken, renewed, checked, given back (core/lease.py says what they are)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from synclib.clock import ulid_bytes, ulid_text
from synclib.core.lease import LEASE_BYTES_MAX, RENEW_S, Lease, decode_lease, encode_lease, owned_ulid
from synclib.core.names import intent_key, pin_key
from synclib.engine.host import Host
from synclib.errors import BoxlinkError, Conflict, Fenced, Missing
from synclib.lazy.dataset import Dataset, HeadLost, HeadState


class Moved(Conflict):
    """A collector was at work between the reading of the head and the taking of a lease: read the head again."""


class Holder:
    """One intent or pin. ``name_key``: the function that makes its key, :func:`intent_key` or :func:`pin_key`."""

    def __init__(self, dataset: Dataset, host: Host, name_key: Callable[[str, str], str]) -> None:
        self._dataset, self._host = dataset, host
        self.session = ulid_bytes(host.clock, host.entropy)
        self.key = name_key(dataset.root, ulid_text(self.session))
        self._etag: str | None = None
        self._seqs: list[int] = []
        self._holds_all = self._is_sweep = False
        self._renewed_at = 0.0
        self._epoch = 0  # of the head that a session without a lease builds on

    @property
    def is_held(self) -> bool:
        return self._etag is not None

    def mint(self) -> bytes:
        """A ULID for an object that this session uploads."""
        return owned_ulid(self.session, ulid_bytes(self._host.clock, self._host.entropy))

    def begin(self, head: HeadState) -> None:
        """Build on a head without a lease, for now. That is as good as one while no head of another epoch comes: what
        a collector deletes it has condemned in the head before (decision 0007)."""
        self._epoch = head.head.epoch

    def take(self, head: HeadState, *seqs: int, holds_all: bool = False) -> None:
        """Say that these seqs are needed, as the head stood when it was read.

        A collector condemns in the head and only then looks for leases; so a head of the same epoch after the lease
        was written means that every collector from now on sees it. Moved when it has another.
        """
        self._seqs, self._holds_all = sorted(seqs), holds_all
        self._put(is_new=not self.is_held)
        again = self._dataset.read_head_since(head.etag) if head.etag is not None else self._first_head()
        if again is not None and again.head.epoch != head.head.epoch:
            raise Moved(f"{self._dataset.name} is being collected", hint="run it again")

    def take_sweep(self) -> None:
        """Say that a collector begins to delete (engine/sweep.py)."""
        self._is_sweep = True
        self._put(is_new=True)

    def _first_head(self) -> HeadState | None:
        try:
            return self._dataset.read_head()
        except (Missing, HeadLost):
            return None

    def _put(self, *, is_new: bool) -> None:
        clock = self._host.clock
        lease = Lease(
            1, self._host.node, self._seqs, clock.wall_ns(), holds_all=self._holds_all, is_sweep=self._is_sweep
        )
        data = encode_lease(lease)
        if is_new:
            # No one else has this key.
            self._etag = self._dataset.store.put(self.key, data)
        else:
            try:
                self._etag = self._dataset.store.put(self.key, data, if_match=self._etag)
            except (Conflict, Missing) as error:
                raise self._fenced() from error
        self._renewed_at = clock.monotonic()

    def renew(self) -> None:
        """For long work, called often: once an hour it says that it lives. Fenced when a collector has ended it."""
        if self.is_held and self._host.clock.monotonic() - self._renewed_at > RENEW_S:
            self._put(is_new=False)

    def check(self) -> None:
        """Fenced unless the lease still stands: to be called after a head was read and before it is replaced."""
        if not self.is_held:
            return
        try:
            found = self._dataset.store.get(self.key, size_max=LEASE_BYTES_MAX)
        except Missing as error:
            raise self._fenced() from error
        assert found is not None
        if decode_lease(found.data).ended_at_ns:
            raise self._fenced()

    def check_head(self, head: HeadState) -> None:
        """That a head which was just read may be replaced: Fenced as :meth:`check`; Moved where there is no lease and
        a collector was at work since :meth:`begin`."""
        if self.is_held:
            self.check()
        elif head.head.epoch != self._epoch:
            raise Moved(f"{self._dataset.name} is being collected", hint="run it again")

    def _fenced(self) -> Fenced:
        return Fenced(
            "a collector has ended this: it was silent for longer than a lease", key=self.key, hint="run it again"
        )

    def end(self) -> None:
        """Give it back. What came before says how it went; a lease that stays behind is only in a collector's way."""
        if self.is_held:
            self._etag = None
            with contextlib.suppress(BoxlinkError):
                self._dataset.store.delete(self.key)


def intent(dataset: Dataset, host: Host) -> Holder:
    return Holder(dataset, host, intent_key)


def pin(dataset: Dataset, host: Host) -> Holder:
    return Holder(dataset, host, pin_key)
