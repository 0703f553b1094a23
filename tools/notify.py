"""Tell whoever started a daemon that it is ready, or still alive (sd_notify(3)); nothing where nobody asked."""

from __future__ import annotations

import contextlib
import os
import socket

SOCKET = "NOTIFY_SOCKET"
READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str) -> None:
    """Never waits and never fails: that nobody listens is no reason not to serve."""
    path = os.environ.get(SOCKET)
    if not path:
        return
    # "@" stands for the NUL of an abstract socket's name.
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(state.encode(), address)


def watchdog_s() -> float | None:
    """How often :data:`ALIVE` is wanted at least, halved to be on the safe side; None where it is not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isascii() and text.isdigit() and int(text) else None
