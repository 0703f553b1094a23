"""Notes what is touched first, in order, while a start-up lasts: positions and times, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from synclib.clock import Clock
from synclib.core.extent_map import Extent
from synclib.core.trace import TOUCHES_MAX, is_over


class Touches:
    """Of one blob. Many threads note at once, without a lock: two of them may note the same extent, which does no
    harm, and the order among those at one moment means nothing."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: set[int] = set()
        self._first_at = self._last_at = 0.0
        self._noted: list[tuple[float, int]] = []

    def note(self, extents: Sequence[Extent]) -> None:
        """Somebody reads these."""
        new = [extent.position for extent in extents if extent.position not in self._seen]
        if not new or len(self._seen) >= TOUCHES_MAX:
            return
        now = self._clock.monotonic()
        if not self._noted:
            self._first_at = now
        self._last_at = now
        self._seen.update(new)
        self._noted += [(now, position) for position in new]

    def is_over(self) -> bool:
        """Whether a start-up began, and has come to its end."""
        return bool(self._noted) and is_over(self._clock.monotonic(), self._first_at, self._last_at)

    def in_order(self) -> list[tuple[int, int]]:
        """(milliseconds since the first, position) of what was touched, each once."""
        found: dict[int, int] = {}
        for at, position in self._noted.copy():
            found.setdefault(position, int((at - self._first_at) * 1000))
        return [(at_ms, position) for position, at_ms in found.items()]
