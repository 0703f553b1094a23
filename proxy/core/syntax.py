"""The grammar that requests and responses share (RFC 9110 5, RFC 9112 5), read strictly: one reading or none."""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.core.message import Field
from synclib.errors import Corrupt

FIELDS_MAX = 100

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A CR or LF that is not half of a CRLF, or a NUL: never legal in a head, and the root of most desyncs.
STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\0")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def parse_fields(lines: Iterable[bytes]) -> list[Field]:
    """(name in lower case, value without white space around it) of each field line; Corrupt at the first bad one.

    A folded line (obs-fold) is refused: whoever reads it as a field of its own sees another message.
    """
    fields: list[Field] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name):
            raise Corrupt("a field line has no valid name")
        value = value.strip(b" \t")
        if _CONTROL.search(value):
            raise Corrupt("a field's value holds a control character")
        fields.append((name.lower(), value))
    if len(fields) > FIELDS_MAX:
        raise Corrupt(f"more than {FIELDS_MAX} fields")
    return fields


def parse_length(values: list[bytes]) -> int | None:
    """Content-Length: one line of digits. Corrupt for anything else, also for the same number twice."""
    if not values:
        return None
    if len(values) > 1 or not _DIGITS.fullmatch(values[0]):
        raise Corrupt("Content-Length is not one number")
    return int(values[0])


def split_list(value: bytes) -> list[bytes]:
    """The members of a comma-separated list, commas in quoted strings left alone; empty members dropped."""
    if b'"' not in value:
        return [item for part in value.split(b",") if (item := part.strip(b" \t"))]
    items: list[bytes] = []
    start, quoted, escaped = 0, False, False
    for position, byte in enumerate(value):
        if escaped:
            escaped = False
        elif quoted and byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            quoted = not quoted
        elif byte == 0x2C and not quoted:
            items.append(value[start:position].strip(b" \t"))
            start = position + 1
    items.append(value[start:].strip(b" \t"))
    return [item for item in items if item]


def tokens(value: bytes | None) -> set[bytes]:
    """The members of a list of tokens, in lower case."""
    return set() if value is None else {item.lower() for item in split_list(value)}
