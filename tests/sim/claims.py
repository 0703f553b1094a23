"""Leases in the model: who holds what, from when to when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from synclib.clock import ulid_from_text
from synclib.core.lease import LEASE_S, decode_lease, owner_tag
from tests.sim.scheduler import ActorClock, Violation

_ULID_LENGTH = 26
# By so much clocks may differ, and a write may be late.
_MARGIN_S = 4500.0


@dataclass
class Claim:
    """A lease, from when its taking has returned until its giving back begins."""

    actor: str
    tag: bytes
    keys: frozenset[str]  # of what it names


@dataclass
class Claims:
    standing: dict[str, Claim] = field(default_factory=dict)  # by the lease's key
    owners: dict[str, str] = field(default_factory=dict)  # the actor who wrote it first
    renewed: dict[str, float] = field(default_factory=dict)  # as it says itself
    condemned: dict[str, set[bytes]] = field(default_factory=dict)  # what was so when it was written first
    ended: dict[str, float] = field(default_factory=dict)  # by a collector, as that says

    def put(self, actor: str, key: str, old: bytes | None, data: bytes, now: float) -> None:
        owner, lease = self.owners.setdefault(key, actor), decode_lease(data)
        if not lease.ended_at_ns:
            if actor != owner:
                raise Violation(f"I3: {actor} wrote {owner}'s lease {key}")
            self.renewed[key] = (lease.renewed_at_ns - ActorClock.EPOCH_NS) / 1e9
            return
        if old is None or decode_lease(old).ended_at_ns:
            raise Violation(f"I3: {actor} ended {owner}'s lease {key}, which had ended")
        if now - self.renewed[key] < LEASE_S - _MARGIN_S:
            raise Violation(f"I3: {actor} ended {owner}'s lease {key} before its time")
        self.ended[key] = (lease.ended_at_ns - ActorClock.EPOCH_NS) / 1e9

    def delete(self, actor: str, key: str, now: float) -> None:
        if actor != self.owners[key] and self._protects(key, now):
            raise Violation(f"I3: {actor} deleted {self.owners[key]}'s lease {key} before its time")

    def take(self, actor: str, key: str, needs: Iterable[str]) -> None:
        """Its taking has returned."""
        self.standing[key] = Claim(actor, owner_tag(ulid_from_text(key[-_ULID_LENGTH:])), frozenset(needs))

    def give_back(self, key: str) -> None:
        self.standing.pop(key, None)

    def is_held_by(self, actor: str, now: float) -> bool:
        """Whether one of an actor's leases stands."""
        return any(claim.actor == actor and self._protects(key, now) for key, claim in self.standing.items())

    def stands(self, key: str, now: float) -> bool:
        return key in self.standing and self._protects(key, now)

    def check_delete(self, actor: str, key: str, *, is_manifest: bool, is_collected: bool, now: float) -> None:
        """That nobody is in need of an object. A session may delete what it uploaded itself."""
        tag = b"" if is_manifest else owner_tag(ulid_from_text(key[-_ULID_LENGTH:]))
        for lease, claim in self.standing.items():
            is_held = key in claim.keys or (tag == claim.tag and (is_collected or actor != claim.actor))
            if is_held and self._protects(lease, now):
                raise Violation(f"I3: {key} was deleted by {actor}, but {claim.actor} holds it")

    def _protects(self, key: str, now: float) -> bool:
        return key not in self.ended or now - self.ended[key] < LEASE_S - _MARGIN_S
