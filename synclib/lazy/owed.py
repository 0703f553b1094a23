"""Answers that a mount owes: requests whose bytes must come from the store, each with a deadline of its own."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass

from synclib.core import fuse
from synclib.lazy.failures import BELIEVED_S, SOON_S

_ERRORS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Owed:
    """A request that was taken at ``taken_s`` and waits: its header and its bytes."""

    request: fuse.Request
    data: bytes
    taken_s: float


class OwedAnswers:
    """By request, the oldest first. Whoever :meth:`take`\\ s one answers it, nobody else. Safe between threads."""

    def __init__(self) -> None:
        self._owed: dict[int, Owed] = {}
        self._lock = threading.Lock()

    def add(self, owed: Owed) -> bool:
        """Whether it takes the place of a former one of the same name, which nobody answers any more."""
        with self._lock:
            is_again = owed.request.unique in self._owed
            self._owed[owed.request.unique] = owed
            return is_again

    def is_owed(self, owed: Owed) -> bool:
        return self._owed.get(owed.request.unique) is owed

    def take(self, owed: Owed) -> bool:
        with self._lock:
            if self._owed.get(owed.request.unique) is not owed:
                return False
            del self._owed[owed.request.unique]
            return True

    def take_late(self, taken_before_s: float) -> list[Owed]:
        """Those that have waited since before then."""
        with self._lock:
            late = [owed for owed in self._owed.values() if owed.taken_s <= taken_before_s]
            for owed in late:
                del self._owed[owed.request.unique]
        return late


class SlowErrors:
    """What could not be had and was long in saying so: believed for as long, but no longer than some seconds, for the
    kernel asks for each page of a read that failed by itself (failures.py). Safe between threads."""

    def __init__(self) -> None:
        # By node, what was asked for: bytes [start, stop) of a file, or the very same request; until when.
        self._errors: dict[tuple[int, int, bytes], list[tuple[int, int, float]]] = {}
        self._lock = threading.Lock()

    def add(self, owed: Owed, now_s: float) -> None:
        """This failed by now."""
        took_s = now_s - owed.taken_s
        if took_s < SOON_S:
            return
        name, start, stop = _place(owed.request, owed.data)
        with self._lock:
            if len(self._errors) > _ERRORS_KEPT:
                self._errors.clear()
            known = [item for item in self._errors.get(name, ()) if item[2] > now_s]
            self._errors[name] = [*known[-_ERRORS_KEPT:], (start, stop, now_s + min(took_s, BELIEVED_S))]

    def number(self, owed: Owed) -> int:
        """The errno that it fails with; 0 where that must be found out."""
        if not self._errors:
            return 0
        name, start, stop = _place(owed.request, owed.data)
        with self._lock:
            known = self._errors.get(name, ())
            is_known = any(low <= start < stop <= high and owed.taken_s < until for low, high, until in known)
        return errno.EIO if is_known else 0


def _place(request: fuse.Request, data: bytes) -> tuple[tuple[int, int, bytes], int, int]:
    if request.opcode == fuse.READ:
        start, length = fuse.read_range(data)
        return (request.node_id, request.opcode, b""), start, start + max(length, 1)
    return (request.node_id, request.opcode, data[fuse.HEADER_BYTES :]), 0, 1
