"""What could lately not be fetched, so that a reader waits for an error once.

When a read fails the kernel asks again for each page of what it wanted to read ahead, one after the other: a file of
300 KB is 73 requests. If each of them waited for a store that does not answer, an error that is due after a minute
would come after an hour. So an error is believed for as long as it took to learn it, but no longer than some seconds;
one that came soon is asked for again at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from synclib.errors import BoxlinkError

SOON_S, BELIEVED_S = 0.1, 5.0
_KEPT_MAX = 4096


class Failures:
    """By position of an extent. Safe between threads."""

    def __init__(self) -> None:
        self._errors: dict[int, tuple[float, BoxlinkError]] = {}  # until when it is believed
        self._lock = threading.Lock()

    def add(self, errors: Iterable[tuple[int, BoxlinkError]], now_s: float, took_s: float) -> None:
        """These have failed by now, after so long."""
        if took_s < SOON_S:
            return
        until_s = now_s + min(took_s, BELIEVED_S)
        with self._lock:
            if len(self._errors) > _KEPT_MAX:
                self._errors = {at: known for at, known in self._errors.items() if known[0] > now_s}
            self._errors.update((position, (until_s, error)) for position, error in errors)

    def check(self, positions: Iterable[int], now_s: float) -> None:
        """Raises the error of one that is believed."""
        if not self._errors:
            return
        with self._lock:
            for position in positions:
                until_s, error = self._errors.get(position, (0.0, None))
                if error is not None:
                    if now_s < until_s:
                        raise error
                    del self._errors[position]
