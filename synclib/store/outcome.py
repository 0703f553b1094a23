"""What a store knows of a failed write beyond its kind."""

from __future__ import annotations

from synclib.errors import Unavailable


class NotApplied(Unavailable):
    """It did not answer in time, but certainly did nothing: even a conditional write may be tried again."""
