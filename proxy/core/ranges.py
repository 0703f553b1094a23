"""One byte range of a complete stored answer (RFC 9110 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.core.dates import parse_date
from proxy.core.message import Fields

_SPEC = re.compile(rb"(?i:bytes)=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` to ``stop`` (half open) of ``size``; empty when the range cannot be satisfied (416)."""

    start: int
    stop: int
    size: int

    @property
    def is_satisfiable(self) -> bool:
        return self.start < self.stop

    @property
    def content_range(self) -> bytes:
        if not self.is_satisfiable:
            return b"bytes */%d" % self.size
        return b"bytes %d-%d/%d" % (self.start, self.stop - 1, self.size)


def select(wanted: bytes | None, size: int) -> Span | None:
    """The span that a Range asks for; None to send everything: several ranges, another unit, or malformed."""
    match = _SPEC.fullmatch(wanted or b"")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return Span(max(0, size - int(match[2])), size if int(match[2]) else 0, size)
    first = int(match[1])
    if not match[2]:
        return Span(first, size, size)
    last = int(match[2])
    if last < first:
        return None
    return Span(first, min(last + 1, size), size)


def if_range_holds(condition: bytes | None, fields: Fields, wall: float) -> bool:
    """Whether If-Range lets a range be sent: a strong etag that is the same, or the very date (RFC 9110 13.1.5)."""
    if condition is None:
        return True
    if condition.startswith(b'"'):
        return fields.get(b"etag") == condition
    when = parse_date(condition, wall)
    modified = parse_date(fields.get(b"last-modified"), wall)
    date = parse_date(fields.get(b"date"), wall)
    # A date is strong only when the answer was made well after it (RFC 9110 8.8.2.2).
    return when is not None and when == modified and date is not None and date - when >= 60
