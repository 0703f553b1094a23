"""``DIR/<name>/refused``: the release that was tried last on this machine, and did not live."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors

_FILE = "refused"
_BYTES_MAX = 4096


class Refused(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    seq: int
    why: str


def refuse(place: Path, seq: int, why: str) -> None:
    with disk_errors():
        write_atomic(place / _FILE, Refused(seq=seq, why=why[:500]).model_dump_json().encode())


def refused(place: Path) -> Refused | None:
    """None where none was, or what says it cannot be read: then it is tried once more."""
    with contextlib.suppress(OSError, ValidationError), (place / _FILE).open("rb") as file:
        return Refused.model_validate_json(file.read(_BYTES_MAX))
    return None


def forget(place: Path) -> None:
    """Let it be tried again."""
    with disk_errors():
        (place / _FILE).unlink(missing_ok=True)
