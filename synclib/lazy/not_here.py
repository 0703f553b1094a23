"""Threads that serve what is here, and leave it to others to wait for the store.

Whoever is about to wait says so first; in a thread that serves that ends the work, which another thread then begins
anew.
"""

from __future__ import annotations

import threading

_here = threading.local()


class NotHereError(Exception):
    """What this thread would have to wait for. No error: nobody is told of it."""


def never_wait() -> None:
    """This thread serves what is here, from now on."""
    _here.never_waits = True


def before_waiting() -> None:
    """Raises NotHereError in a thread that may not wait."""
    if getattr(_here, "never_waits", False):
        raise NotHereError
