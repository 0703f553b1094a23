"""What a request and a response are here: values without sockets, names in lower case, hop-by-hop fields gone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from synclib.errors import Invalid

Field = tuple[bytes, bytes]

# RFC 9110 7.6.1; Keep-Alive and Proxy-Connection are older, Trailer and TE speak of this hop's framing.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

# Connection may not name these (RFC 9110 7.6.1): without them more would be cached.
NEVER_CONNECTION = frozenset(
    (b"age", b"cache-control", b"cdn-cache-control", b"date", b"expires", b"set-cookie", b"vary")
)

_SPELLINGS = {
    b"etag": b"ETag",
    b"www-authenticate": b"WWW-Authenticate",
    b"te": b"TE",
    b"dnt": b"DNT",
    b"content-md5": b"Content-MD5",
    b"cdn-cache-control": b"CDN-Cache-Control",
}


class Refused(Invalid):
    """A request that is not forwarded: malformed, beyond a limit, or of a kind this proxy does not do."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Fields:
    """The fields of a message in their order, names in lower case."""

    __slots__ = ("_index", "pairs")

    def __init__(self, pairs: Iterable[Field] = ()) -> None:
        self.pairs = tuple(pairs)
        index: dict[bytes, list[bytes]] = {}
        for name, value in self.pairs:
            index.setdefault(name, []).append(value)
        self._index = index

    def __contains__(self, name: bytes) -> bool:
        return name in self._index

    def __iter__(self) -> Iterator[Field]:
        return iter(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Fields({list(self.pairs)!r})"

    def lines(self, name: bytes) -> list[bytes]:
        """The value of each line of that name."""
        return self._index.get(name, [])

    def get(self, name: bytes) -> bytes | None:
        """All lines of a name as one value (RFC 9110 5.3); None when there is none."""
        values = self._index.get(name)
        if values is None:
            return None
        return values[0] if len(values) == 1 else b", ".join(values)

    def without(self, names: Collection[bytes]) -> Fields:
        return Fields(pair for pair in self.pairs if pair[0] not in names)

    def plus(self, *pairs: Field) -> Fields:
        return Fields((*self.pairs, *pairs))


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passed every check; ``fields`` are what may be forwarded (no hop-by-hop, no Host)."""

    method: bytes
    target: bytes  # origin form, as sent
    host: bytes  # canonical: lower case, no default port
    minor: int  # HTTP/1.<minor>
    fields: Fields
    is_persistent: bool  # the client wants to keep its connection
    length: int | None = None  # of its body; None with neither length nor chunks
    is_chunked: bool = False
    expects_continue: bool = False
    body: bytes = b""

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def has_content(self) -> bool:
        return self.is_chunked or bool(self.length)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's head; ``fields`` are end to end, without framing (no Content-Length)."""

    status: int
    reason: bytes
    fields: Fields


def spell(name: bytes) -> bytes:
    """A field's name as it is usually written."""
    return _SPELLINGS.get(name) or b"-".join(word.capitalize() for word in name.split(b"-"))


def encode_fields(fields: Iterable[Field]) -> bytes:
    return b"".join([b"%b: %b\r\n" % (spell(name), value) for name, value in fields])


def encode_response_head(status: int, reason: bytes, fields: Iterable[Field]) -> bytes:
    """The head without the empty line that ends it."""
    return b"HTTP/1.1 %d %b\r\n%b" % (status, reason, encode_fields(fields))
