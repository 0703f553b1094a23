"""Cache-Control (RFC 9111 5.2, with stale-while-revalidate and stale-if-error of RFC 5861), cautiously read."""

from __future__ import annotations

import re

from proxy.core.message import Fields
from proxy.core.syntax import TOKEN, split_list

SECONDS_MAX = 1 << 31  # RFC 9111 1.2.2: what is larger counts as this

_NUMBER = re.compile(rb"[0-9]{1,19}")


class Directives:
    """The directives of one message; names in lower case. What is malformed is read as the more cautious."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[bytes, list[bytes | None]]) -> None:
        self._values = values

    def __contains__(self, name: bytes) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def seconds(self, name: bytes) -> int | None:
        """A directive's argument; of several the smallest, and 0 when one is no number (RFC 9111 4.2.1)."""
        values = self._values.get(name)
        if values is None:
            return None
        return min(_seconds(value) for value in values)

    def has_bare(self, name: bytes) -> bool:
        """Whether the directive stands without an argument."""
        return None in self._values.get(name, ())


def parse_directives(fields: Fields, field: bytes = b"cache-control") -> Directives:
    values: dict[bytes, list[bytes | None]] = {}
    for line in fields.lines(field):
        for item in split_list(line):
            name, equals, value = item.partition(b"=")
            if TOKEN.fullmatch(name):
                values.setdefault(name.lower(), []).append(value if equals else None)
    return Directives(values)


def _seconds(value: bytes | None) -> int:
    if value is None:
        return 0
    if len(value) > 2 and value[:1] == value[-1:] == b'"':
        value = value[1:-1]
    return min(int(value), SECONDS_MAX) if _NUMBER.fullmatch(value) else 0


def request_directives(fields: Fields) -> Directives:
    """A request's directives; Pragma: no-cache counts where there is no Cache-Control (RFC 9111 5.4)."""
    if b"cache-control" in fields or b"pragma" not in fields:
        return parse_directives(fields)
    return parse_directives(fields, b"pragma")


_KEY = rb"[a-z*][a-z0-9_.*-]*"
_BARE_ITEM = (
    rb"(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?"  # integer or decimal
    rb"|\"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\[\"\\])*\""  # string
    rb"|[A-Za-z*][!#$%&'*+.^_`|~:/0-9A-Za-z-]*"  # token
    rb"|\?[01])"  # boolean
)
_MEMBER = re.compile(rb"(%b)(?:=(%b))?(?:; *%b(?:=%b)?)*" % (_KEY, _BARE_ITEM, _KEY, _BARE_ITEM))
_SEPARATOR = re.compile(rb"[ \t]*,[ \t]*")


def targeted_directives(fields: Fields) -> Directives | None:
    """CDN-Cache-Control (RFC 9213), which a shared cache obeys instead of Cache-Control and Expires.

    A structured dictionary (RFC 8941 3.2): None when there is none, it is empty, or any part of it is malformed; of
    several members with one key the last counts.
    """
    value = fields.get(b"cdn-cache-control")
    if value is None:
        return None
    members: dict[bytes, bytes | None] = {}
    position = 0
    while True:
        match = _MEMBER.match(value, position)
        if match is None:
            return None
        members[match[1]] = match[2]
        position = match.end()
        if position == len(value):
            break
        separator = _SEPARATOR.match(value, position)
        if separator is None:
            return None
        position = separator.end()
    return Directives({key: [argument] for key, argument in members.items() if argument != b"?0"})
