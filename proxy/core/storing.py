"""Whether an answer may be kept by a shared cache (RFC 9111 3), and for whom."""

from __future__ import annotations

from proxy.core.cache_control import request_directives
from proxy.core.freshness import HEURISTIC_STATUSES, Freshness, response_directives
from proxy.core.message import Fields, Request
from proxy.core.syntax import split_list

# Final statuses whose rules for caching are carried out here (must-understand, RFC 9111 5.2.2.3).
_UNDERSTOOD = HEURISTIC_STATUSES | {302, 303, 307, 401, 402, 403, 406, 409, 421, 422, 451, 500, 502, 503, 504}
# What a backend answers to a malformed or oversized request hangs on parts of it that are in no cache key.
_OF_THE_REQUEST = frozenset((400, 408, 411, 412, 413, 415, 416, 417, 425, 426, 428, 429, 431, 505))


def why_not_stored(request: Request, status: int, fields: Fields, freshness: Freshness) -> str:
    """ "" when the answer may be kept, else the reason in one word."""
    directives, _ = response_directives(fields)
    if request.method != b"GET" or request.has_content:
        return "method"
    if b"no-store" in request_directives(request.fields):
        return "request-no-store"
    if status in (206, 304) or status in _OF_THE_REQUEST or status < 200:
        return "status"
    if b"must-understand" in directives:
        if status not in _UNDERSTOOD:
            return "status"
    elif b"no-store" in directives:
        return "no-store"
    if b"private" in directives:
        return "private"
    is_shared = b"public" in directives or b"s-maxage" in directives
    if b"authorization" in request.fields and not is_shared and b"must-revalidate" not in directives:
        return "authorization"
    if b"set-cookie" in fields and not is_shared:
        return "set-cookie"
    if vary_names(fields) is None:
        return "vary"
    if fields.get(b"boxlink-wall") == b"unknown":
        return "unknown-wall"
    explicit = is_shared or b"max-age" in directives or b"expires" in fields
    if not explicit and status not in HEURISTIC_STATUSES:
        return "status"
    if not freshness.lifetime and not (b"etag" in fields or b"last-modified" in fields):
        return "no-lifetime"
    return ""


def may_be_shared(freshness: Freshness, now: float) -> bool:
    """Whether requests that waited for this answer may have it without asking again (RFC 9111 4)."""
    return not freshness.must_validate and freshness.left(now) > 0


def vary_names(fields: Fields) -> tuple[bytes, ...] | None:
    """The request fields that select this answer, in lower case and sorted; None for ``*``: nothing selects it."""
    names = {item.lower() for line in fields.lines(b"vary") for item in split_list(line)}
    return None if b"*" in names else tuple(sorted(names))
