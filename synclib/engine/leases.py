"""The leases that lie in a store, as a collector sees them: who holds what, and who is silent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from synclib.clock import ulid_from_text
from synclib.core.lease import LEASE_BYTES_MAX, Lease, decode_lease, encode_lease, owner_tag
from synclib.core.names import intent_prefix, parse_ulid_key, pin_prefix
from synclib.errors import BoxlinkError, Conflict, Missing
from synclib.lazy.dataset import Dataset


@dataclass(frozen=True)
class HeldLease:
    key: str
    etag: str
    lease: Lease
    tag: bytes  # the owner tag of its session

    def __str__(self) -> str:
        return f"{self.lease.node} ({self.key})"


def all_leases(dataset: Dataset) -> Iterator[HeldLease]:
    """Intents, then pins. One that does not read is an error: nobody knows what it holds."""
    for prefix in (intent_prefix(dataset.root), pin_prefix(dataset.root)):
        yield from _leases(dataset, prefix)


def sweeps_under_way(dataset: Dataset, now_ns: int, *, own: str = "") -> list[HeldLease]:
    """The collections, but for that with the lease ``own``, which may still delete what they found condemned: also one
    that was ended lately, since it may not have learned of it."""
    leases = _leases(dataset, intent_prefix(dataset.root), but_for=own)
    return [held for held in leases if held.lease.is_sweep and held.lease.protects(now_ns)]


def _leases(dataset: Dataset, prefix: str, *, but_for: str = "") -> Iterator[HeldLease]:
    for info in list(dataset.store.list(prefix)):
        if info.key == but_for:
            continue
        tag = owner_tag(ulid_from_text(parse_ulid_key(prefix, info.key)))
        try:
            found = dataset.store.get(info.key, size_max=LEASE_BYTES_MAX)
            assert found is not None
            yield HeldLease(info.key, found.etag, decode_lease(found.data), tag)
        except Missing:
            # Given back meanwhile.
            continue
        except BoxlinkError as error:
            error.key = error.key or info.key
            error.hint = error.hint or "if nobody is at work, delete this object and run it again"
            raise


def end_expired(dataset: Dataset, now_ns: int) -> None:
    """Tell silent holders, in their leases, that these have ended; forget those that ended long ago."""
    for held in all_leases(dataset):
        try:
            if not held.lease.protects(now_ns):
                dataset.store.delete(held.key, if_match=held.etag)
            elif not held.lease.ended_at_ns and held.lease.is_expired(now_ns):
                ended = msgspec.structs.replace(held.lease, ended_at_ns=now_ns)
                dataset.store.put(held.key, encode_lease(ended), if_match=held.etag)
        except (Conflict, Missing):
            # It was renewed or given back at this moment.
            continue
