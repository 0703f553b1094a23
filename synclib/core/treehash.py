"""The digest of a seq: a multiset hash over its entries, kept incrementally.

AdHash (Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", EUROCRYPT 1997): each entry is
hashed to a 4096-bit number, the state is their sum modulo 2^4096. Adding or removing an entry costs one hash,
however large the tree, and the order of entries does not matter. Wagner's generalised birthday attack (CRYPTO
2002) needs about 2^(2*sqrt(4096)) = 2^128 work at this width.
"""

from __future__ import annotations

from blake3 import blake3

from synclib.core.entry import Entry, digest_input

STATE_BYTES = 512
_MASK = (1 << 8 * STATE_BYTES) - 1


def entry_number(entry: Entry) -> int:
    """The 4096-bit number of an entry."""
    return int.from_bytes(blake3(digest_input(entry)).digest(STATE_BYTES), "little")


class TreeHash:
    """The running sum over a set of entries."""

    __slots__ = ("count", "state")

    def __init__(self, state: bytes = bytes(STATE_BYTES), count: int = 0) -> None:
        self.state = int.from_bytes(state, "little")
        self.count = count

    def add(self, entry: Entry) -> None:
        self.state = self.state + entry_number(entry) & _MASK
        self.count += 1

    def remove(self, entry: Entry) -> None:
        self.state = self.state - entry_number(entry) & _MASK
        self.count -= 1

    def state_bytes(self) -> bytes:
        return self.state.to_bytes(STATE_BYTES, "little")

    def hexdigest(self) -> str:
        """64 hex digits: what is shown as ``digest``."""
        return blake3(self.state_bytes() + self.count.to_bytes(8, "little")).hexdigest()
