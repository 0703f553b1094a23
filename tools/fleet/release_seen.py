"""``DIR/<name>/following``: what ``boxlink release follow`` last saw of its channel, for the ``up`` that runs it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated

import msgspec

from synclib.core.frame import DECODE_ERRORS
from synclib.disk.atomic import write_atomic

_BYTES_MAX = 16 << 10
_ERROR_MAX = 300


class Seen(msgspec.Struct, frozen=True):
    """``wanted``: the seq that the channel names; ``error``: why it is not taken, empty where nothing is wrong."""

    wanted: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    error: str = ""


def note_seen(place: Path, wanted: int, error: str) -> None:
    """Written only where it changes. ``place``: DIR/<name>. Any OSError."""
    seen = Seen(wanted, error[:_ERROR_MAX])
    if last_seen(place) != seen:
        write_atomic(place / "following", msgspec.json.encode(seen))


def last_seen(place: Path) -> Seen | None:
    """None where nothing was seen, or it cannot be read."""
    try:
        # A pipe would be waited for.
        descriptor = os.open(place / "following", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return msgspec.json.decode(file.read(_BYTES_MAX), type=Seen)
    except (OSError, *DECODE_ERRORS):
        return None
