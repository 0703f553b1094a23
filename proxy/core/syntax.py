"""The grammar that requests and responses share (RFC 9110 5, RFC 9112 5), read strictly: one reading or none."""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.core.message import Field
from synclib.errors import Corrupt

FIELDS_MAX = 100

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Possessive: a value of blanks before a control byte must not be tried in every way.
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*+)")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def has_stray(data: bytes | bytearray, start: int, stop: int) -> bool:
    """Whether a part holds a CR or LF that is not half of a CRLF, or a NUL: never legal, the root of most desyncs.

    A CR at the end of all that has come is let pass, since its LF may be still to come.
    """
    if start and data[start - 1] == 0x0D:
        start -= 1
    if stop > start and data[stop - 1] == 0x0D and data[stop : stop + 1] in (b"", b"\n"):
        stop -= 1
    pairs = data.count(b"\r\n", start, stop)
    return (
        data.count(b"\n", start, stop) != pairs
        or data.count(b"\r", start, stop) != pairs
        or data.find(b"\0", start, stop) >= 0
    )


def parse_fields(lines: Iterable[bytes]) -> list[Field]:
    """(name in lower case, value without white space around it) of each field line; Corrupt at the first bad one.

    A folded line (obs-fold) is refused: whoever reads it as a field of its own sees another message.
    """
    fields: list[Field] = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Corrupt("a field line has no valid name, or a control character in its value")
        name, value = match.groups()
        fields.append((name.lower(), value.strip(b" \t")))
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
