"""What to do with a request for which there is, or is not, a stored answer (RFC 9111 4)."""

from __future__ import annotations

import enum

from proxy.core.cache_control import Directives
from proxy.core.freshness import Freshness


class Use(enum.Enum):
    """``HIT`` and ``STALE_HIT`` answer from the store, ``REFRESH`` too while it asks the origin behind that answer."""

    HIT = "hit"
    STALE_HIT = "stale-hit"  # the client allows it (max-stale)
    REFRESH = "refresh"  # the origin allows it (stale-while-revalidate)
    VALIDATE = "validate"
    FETCH = "fetch"
    FAIL = "fail"  # only-if-cached, and there is nothing


def plan(stored: Freshness | None, asked: Directives, now: float) -> Use:
    """``asked``: the request's directives. They are a wish (RFC 9111 5.2.1), and are granted."""
    if stored is None:
        return Use.FAIL if b"only-if-cached" in asked else Use.FETCH
    usable = _usable(stored, asked, now)
    if usable is None:
        return Use.FAIL if b"only-if-cached" in asked else Use.VALIDATE
    return usable


def _usable(stored: Freshness, asked: Directives, now: float) -> Use | None:
    if stored.must_validate or b"no-cache" in asked:
        return None
    age_max = asked.seconds(b"max-age")
    if age_max is not None and stored.age(now) > age_max:
        return None
    left = stored.left(now) - (asked.seconds(b"min-fresh") or 0)
    if left > 0:
        return Use.HIT
    if stored.left(now) > 0 or stored.forbids_stale:
        return None
    if b"max-stale" in asked and (asked.has_bare(b"max-stale") or -left <= (asked.seconds(b"max-stale") or 0)):
        return Use.STALE_HIT
    if -left < stored.stale_while_revalidate and age_max is None:
        return Use.REFRESH
    return None


def may_answer_failure(stored: Freshness, asked: Directives, now: float, *, is_unreachable: bool) -> bool:
    """Whether a stale answer may stand in for a failed one (RFC 9111 4.2.4, RFC 5861 4).

    ``is_unreachable``: no backend gave any answer; else one answered with an error (500, 502, 503, 504), and only
    stale-if-error lets the stored answer stand in for that.
    """
    if stored.forbids_stale or b"no-cache" in asked or b"max-age" in asked or b"min-fresh" in asked:
        return False
    staleness = max(0.0, -stored.left(now))
    limits = [limit for limit in (stored.stale_if_error, asked.seconds(b"stale-if-error")) if limit is not None]
    if limits:
        return staleness <= max(limits)
    return is_unreachable
