"""Tell whoever started a daemon that it is ready, or still alive (sd_notify(3)); nothing where nobody asked."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence

SOCKET = "NOTIFY_SOCKET"
READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str, descriptors: Sequence[int] = ()) -> None:
    """Never waits and never fails: that nobody listens is no reason not to serve. ``descriptors`` go along."""
    path = os.environ.get(SOCKET)
    if not path:
        return
    # "@" stands for the NUL of an abstract socket's name.
    address = "\0" + path[1:] if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.connect(address)
        socket.send_fds(sender, [state.encode()], list(descriptors))


def watchdog_s() -> float | None:
    """How often :data:`ALIVE` is wanted at least, halved to be on the safe side; None where it is not, or of another
    process (sd_watchdog_enabled(3))."""
    text, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if process and process != str(os.getpid()):
        return None
    return int(text) / 2e6 if text.isascii() and text.isdigit() and int(text) else None


def say_alive(late: Callable[[], Sequence[str]], on_late: Callable[[Sequence[str]], None]) -> None:
    """Say :data:`ALIVE` from a thread, as often as it is wanted, while nothing is ``late``. What is late is told to
    ``on_late`` once; whoever watches then ends this process when its time is over."""
    if (pause_s := watchdog_s()) is None:
        return

    def run() -> None:
        told: list[str] = []
        while True:
            found = list(late())
            if not found:
                notify(ALIVE)
            elif found != told:
                on_late(found)
            told = found
            never.wait(pause_s)

    never = threading.Event()
    threading.Thread(target=run, name="watchdog", daemon=True).start()
