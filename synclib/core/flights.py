"""How many requests of a restore are under way: one more after each that went well, half of them after one that a store
pushed back (AIMD; Chiu and Jain, Computer Networks and ISDN Systems 17, 1989)."""

from __future__ import annotations


class Flights:
    """``most``: what memory allows; each flight holds a range's bytes."""

    def __init__(self, first: int, most: int) -> None:
        self.limit = min(first, most)
        self._most = most
        self._well = 0

    def landed(self, *, is_pushed_back: bool) -> None:
        """A job is done. ``is_pushed_back``: it needed more requests than it was planned to."""
        if is_pushed_back:
            self.limit, self._well = max(1, self.limit // 2), 0
            return
        self._well += 1
        if self._well >= self.limit:
            self.limit, self._well = min(self.limit + 1, self._most), 0
