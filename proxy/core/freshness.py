"""How long an answer is fresh and how old it is (RFC 9111 4.2), worked out once, when it arrives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.core.cache_control import SECONDS_MAX, Directives, parse_directives, targeted_directives
from proxy.core.dates import parse_date
from proxy.core.message import Field, Fields, Request
from proxy.core.syntax import split_list

# Statuses that may be kept without a word from the origin (RFC 9110 15.1), where Last-Modified gives a measure.
HEURISTIC_STATUSES = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))
HEURISTIC_FRACTION = 0.1
HEURISTIC_SECONDS_MAX = 86400

_NUMBER = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Freshness:
    """Everything that reuse of a stored answer depends on; seconds, instants on the monotonic clock."""

    lifetime: int
    initial_age: float  # RFC 9111 4.2.3, corrected_initial_age
    received_at: float
    must_validate: bool  # no-cache
    forbids_stale: bool  # must-revalidate, proxy-revalidate, s-maxage, no-cache
    stale_while_revalidate: int
    stale_if_error: int | None

    def age(self, now: float) -> float:
        return self.initial_age + max(0.0, now - self.received_at)

    def left(self, now: float) -> float:
        """Seconds of freshness left; negative when stale."""
        return self.lifetime - self.age(now)


def response_directives(fields: Fields) -> tuple[Directives, bool]:
    """(the directives that bind this cache, whether they come from a targeted field)."""
    targeted = targeted_directives(fields)
    return (parse_directives(fields), False) if targeted is None else (targeted, True)


def assess(status: int, fields: Fields, *, wall: float, asked_at: float, received_at: float) -> Freshness:
    """``wall``: seconds since 1970 when the answer came; ``asked_at``, ``received_at``: monotonic seconds."""
    directives, is_targeted = response_directives(fields)
    date = parse_date(_single(fields, b"date"), wall)
    apparent_age = 0.0 if date is None else max(0.0, wall - date)
    corrected = age_of(fields) + max(0.0, received_at - asked_at)
    no_cache = b"no-cache" in directives
    return Freshness(
        lifetime=_lifetime(status, fields, directives, is_targeted, wall),
        initial_age=max(apparent_age, corrected),
        received_at=received_at,
        must_validate=no_cache,
        forbids_stale=no_cache
        or any(name in directives for name in (b"must-revalidate", b"proxy-revalidate", b"s-maxage")),
        stale_while_revalidate=directives.seconds(b"stale-while-revalidate") or 0,
        stale_if_error=directives.seconds(b"stale-if-error"),
    )


def age_of(fields: Fields) -> int:
    """Age as received: the first member, and nothing when it is no number (RFC 9111 5.1)."""
    members = split_list(fields.get(b"age") or b"")
    return min(int(members[0]), SECONDS_MAX) if members and _NUMBER.fullmatch(members[0]) else 0


def _lifetime(status: int, fields: Fields, directives: Directives, is_targeted: bool, wall: float) -> int:
    for name in (b"s-maxage", b"max-age"):
        seconds = directives.seconds(name)
        if seconds is not None:
            return seconds
    date = parse_date(_single(fields, b"date"), wall)
    base = wall if date is None else date
    if b"expires" in fields and not is_targeted:
        expires = parse_date(_single(fields, b"expires"), wall)
        return 0 if expires is None else max(0, min(int(expires - base), SECONDS_MAX))
    modified = parse_date(_single(fields, b"last-modified"), wall)
    if modified is None or not (status in HEURISTIC_STATUSES or b"public" in directives):
        return 0
    return max(0, min(int((base - modified) * HEURISTIC_FRACTION), HEURISTIC_SECONDS_MAX))


def _single(fields: Fields, name: bytes) -> bytes | None:
    """The one line of a field that may stand once; several are as good as none."""
    lines = fields.lines(name)
    return lines[0] if len(lines) == 1 else None


def registered_lifetime(request: Request, status: int, fields: Fields, seconds: int | None) -> Fields:
    """The answer's fields with the lifetime of its backend's registration, where the origin said nothing itself.

    Only for 200 and 206 answers to GET and HEAD. Any word of the origin on caching wins, and what may be one person's
    (Authorization, Set-Cookie) is never made public.
    """
    if (
        not seconds
        or status not in (200, 206)
        or request.method not in (b"GET", b"HEAD")
        or any(name in fields for name in _ORIGIN_SPOKE)
        or b"authorization" in request.fields
        or any(b"*" in split_list(line) for line in fields.lines(b"vary"))
    ):
        return fields
    said: Field = (b"cache-control", b"public, max-age=%d, immutable" % seconds)
    return fields.plus(said)


_ORIGIN_SPOKE = (b"cache-control", b"cdn-cache-control", b"surrogate-control", b"expires", b"pragma", b"set-cookie")
