"""One daemon a data directory: two would undo each other's work, and answer for each other.

.boxlink/sync    held by the daemon for as long as it lives; its bytes are that process's id
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from synclib.core.names import STATE_DIRECTORY
from synclib.disk.faults import disk_errors
from synclib.errors import Conflict, Invalid

_PID_BYTES = 20


@contextlib.contextmanager
def sole_daemon(data: Path) -> Iterator[None]:
    """Conflict while another process serves the data directory."""
    state = data / STATE_DIRECTORY
    if state.is_symlink():
        raise Invalid(f"{state} is a symlink", hint="remove it: boxlink makes a directory of its own")
    with disk_errors():
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            state / "sync", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644
        )
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, _PID_BYTES, 0)
            raise Conflict(
                f"another boxlink sync serves {data}" + (f": process {int(other)}" if other.isdigit() else ""),
                hint="end it first, or give this one a --data of its own",
                path=str(data),
            ) from None
        with contextlib.suppress(OSError):  # it is for people, and a full disk stops no daemon
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % os.getpid(), 0)
        yield
    finally:
        os.close(descriptor)
