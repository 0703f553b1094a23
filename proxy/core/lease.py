"""Leases of registrations, on this proxy's clock alone.

A lease counts the time since an object's etag last changed, and only time in which the store could be read: after an
outage every lease starts anew, since nobody could have renewed one.
"""

from __future__ import annotations

from collections.abc import Mapping


class Leases:
    """What each key's etag was, and at which moment of readable time it was first seen."""

    def __init__(self) -> None:
        self._readable = 0.0  # seconds in which the store could be read
        self._last_finished: float | None = None
        self._seen: dict[str, tuple[str, float]] = {}

    def observe(self, etags: Mapping[str, str], started: float, finished: float) -> None:
        """A listing that succeeded: asked at ``started``, complete at ``finished`` (monotonic seconds)."""
        is_after_outage = self._last_finished is None
        if self._last_finished is not None:
            self._readable += max(0.0, started - self._last_finished)
        self._last_finished = finished
        seen = {}
        for key, etag in etags.items():
            before = self._seen.get(key)
            is_renewed = before is None or before[0] != etag or is_after_outage
            seen[key] = (etag, self._readable) if is_renewed or before is None else before
        self._seen = seen

    def suspend(self) -> None:
        """The store could not be read: no time counts until it can be again."""
        self._last_finished = None

    def has_lapsed(self, key: str, lease_s: float) -> bool:
        before = self._seen.get(key)
        return before is not None and self._readable - before[1] > lease_s
