"""Intents and pins: what a collector must not delete, said in the store by those who need it.

A publisher's intent names the seqs that it builds on, and the objects that it uploads carry its tag; a reader's pin
names the seq that it reads. Both are leases: they end when their holder takes them away, or when a collector finds
them expired and says so in them. A collector's own says that it deletes.
"""

from __future__ import annotations

import msgspec

from synclib.core.frame import DECODE_ERRORS, pack_frame, unpack_frame
from synclib.errors import Corrupt

MAGIC = b"BXLL"
LEASE_BYTES_MAX = 1 << 16
# How long a holder that does not renew is believed, and how often one that lives does.
LEASE_S = 24 * 3600
RENEW_S = 3600
_SEQS_MAX = 1000
_TAG = slice(6, 11)


class Lease(msgspec.Struct, frozen=True):
    """``ended_at_ns`` is not 0 once a collector has ended it: its holder is then fenced."""

    v: int
    node: str
    seqs: list[int]
    renewed_at_ns: int
    ended_at_ns: int = 0
    holds_all: bool = False  # it uploads what other sessions made (a replication): nothing is to be deleted
    is_sweep: bool = False  # a collector's: it holds nothing, but what is condemned must not come back while it stands

    def is_expired(self, now_ns: int) -> bool:
        return now_ns - self.renewed_at_ns > LEASE_S * 10**9

    @property
    def next_step_ns(self) -> int:
        """From when on, if its holder stays silent, a collector may end it; or sweep, where it was ended."""
        return (self.ended_at_ns or self.renewed_at_ns) + LEASE_S * 10**9

    def protects(self, now_ns: int) -> bool:
        """Whether what it names may not be swept: one that was ended still protects for one lease more."""
        return not self.ended_at_ns or now_ns - self.ended_at_ns <= LEASE_S * 10**9


def encode_lease(lease: Lease) -> bytes:
    return pack_frame(MAGIC, msgspec.json.encode(lease))


def decode_lease(data: bytes) -> Lease:
    """A lease; one that does not read raises Corrupt, and a collector then goes no further."""
    try:
        lease = msgspec.json.decode(unpack_frame(MAGIC, data), type=Lease)
    except DECODE_ERRORS as error:
        raise Corrupt(f"a lease does not read: {error}") from error
    if lease.v != 1 or len(lease.seqs) > _SEQS_MAX or any(not 0 <= seq < 1 << 63 for seq in lease.seqs):
        raise Corrupt("a lease is impossible")
    return lease


def owner_tag(ulid: bytes) -> bytes:
    """5 bytes of an object's ULID that name the session which uploaded it; of a session's own ULID, its tag."""
    return ulid[_TAG]


def owned_ulid(session: bytes, fresh: bytes) -> bytes:
    """A ULID for an object of a session: ``fresh``'s time and last entropy, the session's tag between them."""
    return fresh[:6] + owner_tag(session) + fresh[11:]
