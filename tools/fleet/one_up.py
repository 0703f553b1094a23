"""At most one ``boxlink up`` of a role on a data directory, and who it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from synclib.core.names import FOLLOWED, STATE_DIRECTORY
from synclib.disk.atomic import write_atomic
from synclib.errors import Conflict, Invalid
from tools.fleet.process_id import ProcessId, process_id

_BYTES_MAX = 64


def hold(data: Path, role: str, pid: int) -> int:
    """A descriptor that keeps others out until it is closed, or its process ends. Conflict where there is one. ``pid``:
    of whom to ask to end."""
    path = _path(data, role)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Invalid(f"{data} cannot be used: {error.strerror}", path=str(data), hint="check --data") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(f"role {role} is up on {data} already", hint="stop that one first", path=str(data)) from None
    own = process_id(pid)
    os.pwrite(descriptor, f"{own.pid} {own.start_time}\n".encode(), 0)
    os.ftruncate(descriptor, len(f"{own.pid} {own.start_time}\n"))
    return descriptor


def note_followed(data: Path, role: str, channel: str) -> None:
    """Which channel of releases it follows, for what the node says of itself (synclib/engine/report.py); empty for
    none. Called by who holds. It is advice: a full disk, on which sync makes room, keeps no node from starting."""
    path = _path(data, role).with_suffix(FOLLOWED)
    with contextlib.suppress(OSError):
        if channel:
            write_atomic(path, f"{channel}\n".encode())
        else:
            path.unlink(missing_ok=True)


def holder(data: Path, role: str) -> ProcessId | None:
    """Who keeps others out; None where nobody does, or it has not said so yet."""
    try:
        text = _path(data, role).read_bytes()[:_BYTES_MAX].decode(errors="replace")
        pid, start_time = map(int, text.split())
    except (OSError, ValueError):
        return None
    found = ProcessId(pid, start_time)
    return found if found.is_alive() else None


def _path(data: Path, role: str) -> Path:
    return data / STATE_DIRECTORY / f"up-{role}.lock"
