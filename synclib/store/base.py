"""The store contract, in prose. Every implementation passes tests/conformance.

* Synchronous, and safe between threads. A store may be used after a fork only if it was made after it.
* Keys are relative, without empty, ``.`` or ``..`` components; ``/`` separates.
* An object is replaced whole and atomically: a reader sees the old bytes or the new ones, never a mixture, and an
  object that was acknowledged survives the writer's death (and, for ``file://``, the machine's).
* Etags are opaque. Equal bytes may have different etags; different bytes never have the same etag at one key.
* Reads are bounded by what the caller expects: an object that is larger is Corrupt, never allocated.
* A range that lies wholly or partly outside the object is Corrupt: data is missing that an index promised.
* Errors are kinds: Missing, Conflict (a condition did not hold), Ambiguous (a conditional write whose answer was
  lost), Unavailable (did not answer in time), Invalid (refused: credentials, rights, names), Full.
* Every call ends within a bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from synclib.errors import Invalid

if TYPE_CHECKING:
    from pathlib import Path

Body: TypeAlias = "bytes | bytearray | memoryview | Path"
Buffer = bytes | memoryview  # what a read hands out: not copied where the client library need not


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object in a listing."""

    key: str
    size: int
    etag: str


class Strangers(Invalid):
    """The last word of a listing, after all objects: among them stands what is none."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes of an object, with the etag and the whole object's size at that moment."""

    data: bytes
    etag: str
    size: int


class Store(Protocol):
    url: str

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        """The whole object; None when its etag is still ``if_none_match``.

        Missing when there is none; Corrupt when it is larger than ``size_max`` bytes.
        """

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """The bytes of each half-open range (start, stop), in that order.

        Ranges may be fetched at the same time or joined. Missing when there is no object; Corrupt for a range that
        is not wholly inside it.
        """

    def get_suffix(self, key: str, length: int) -> Fetched:
        """The last ``length`` bytes of an object, or all of it when it is shorter."""

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write an object and return its etag.

        ``if_absent``: Conflict when there is one already. ``if_match``: Conflict unless there is one with that
        etag. A Path is streamed from that file. A conditional write is tried once: Ambiguous when the answer is lost.
        ``body`` is the caller's again when this returns: a store keeps a copy or nothing.
        """

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Delete an object; no error when there is none. ``if_match``: Conflict when there is one with another etag."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key begins with ``prefix`` and is greater than ``after``, in byte order of the keys.

        Objects that come or go meanwhile may be seen or not; all others are seen exactly once. Strangers at its end.
        """


def in_spite_of_strangers(listing: Iterator[ObjectInfo], say: Callable[[str], None]) -> Iterator[ObjectInfo]:
    """The objects of a listing, for who deletes nothing by it; what else stands there is said."""
    try:
        yield from listing
    except Strangers as error:
        say(error.message)
