"""One listening socket for a server and the one that takes its place, so that no connection is lost between them.

The running server hands the socket itself to its successor (SCM_RIGHTS, unix(7)): there is one queue of connections,
from which both accept until the old one no longer does; what waits in it then is the new one's. With SO_REUSEPORT each
server has a queue of its own, and the connections that wait in it are reset when its server closes (socket(7)): under
load that is some for each upgrade.

It is asked for by the address: an abstract socket, which goes with its process. Nobody but root and the same user is
given one, or believed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time

from synclib.errors import Invalid
from tools.addresses import bind, show_address

_ANSWER_S = 5.0
_AGAIN_S = 0.2
_LOOKS = 4
_CREDENTIALS = struct.Struct("3i")  # unix(7), SO_PEERCRED: pid, uid, gid


def shared_bind(host: str, port: int) -> tuple[socket.socket, bool]:
    """The socket of the server that listens there, if it shares it; else one bound anew. Whether it was handed over."""
    taken = None if port == 0 else _asked_for(*_resolved(host, port))
    return (bind(host, port), False) if taken is None else (taken, True)


def bind_unless_shared(host: str, port: int) -> tuple[socket.socket | None, tuple[str, int]]:
    """A socket bound to the address, and the address as the kernel names it. None where a server there shares it: who
    cannot serve yet leaves it there, lest connections come to nobody when that one ends, and asks for it later."""
    bound, was_handed = shared_bind(host, port)
    address = bound.getsockname()[:2]
    if not was_handed:
        return bound, address
    bound.close()
    return None, address


def _resolved(host: str, port: int) -> tuple[str, int]:
    """As the kernel names it; what cannot be found is said by :func:`bind`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    except OSError:
        return host, port
    return str(found[0]), port


def _asked_for(host: str, port: int) -> socket.socket | None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ANSWER_S)
        try:
            asking.connect(_name(host, port))
        except OSError:
            return None
        if not _is_trusted(asking):
            raise Invalid(
                f"somebody else says that they listen on {show_address(host, port)}", hint="see who: ss -xlp, ss -tlp"
            )
        try:
            _, descriptors, _, _ = socket.recv_fds(asking, 1, 1)
        except OSError:
            return None
    if not descriptors:
        return None
    taken = socket.socket(fileno=descriptors[0])
    os.set_inheritable(taken.fileno(), False)
    if taken.type != socket.SOCK_STREAM or taken.getsockname()[:2] != (host, port):
        taken.close()
        return None
    return taken


class HandOut:
    """Gives ``listener`` to whoever asks, until :meth:`close`."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener.dup()
        self._address = listener.getsockname()[:2]
        self._closing = threading.Event()
        self._door = socket.socket(socket.AF_UNIX)
        self._is_ours = self._take()  # at once, so that whoever finds the port taken finds the door as well
        self._thread = threading.Thread(target=self._run, name="hand out", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Let another have the door; whether there is one: a server that goes on accepting from the same queue."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # who waits at it wakes up
        self._thread.join()
        self._door.close()
        self._listener.close()
        return any(map(self._is_shared, range(_LOOKS)))

    def _is_shared(self, look: int) -> bool:
        """A successor needs a moment to come to the door."""
        if look:
            time.sleep(_AGAIN_S)
        other = _asked_for(*self._address)
        if other is not None:
            other.close()
        return other is not None

    def _take(self) -> bool:
        """Not where the server before has the door, until it drains."""
        try:
            self._door.bind(_name(*self._address))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        self._door.listen()
        return True

    def _run(self) -> None:
        while not self._is_ours:
            if self._closing.wait(_AGAIN_S):
                return
            self._is_ours = self._take()
        while not self._closing.is_set():
            try:
                asking, _ = self._door.accept()
            except OSError:
                self._closing.wait(_AGAIN_S)  # too many open files, or it is closed
                continue
            with asking, contextlib.suppress(OSError):
                asking.settimeout(_ANSWER_S)
                if _is_trusted(asking):
                    socket.send_fds(asking, [b"1"], [self._listener.fileno()])


def _is_trusted(peer: socket.socket) -> bool:
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid in (0, os.geteuid())


def _name(host: str, port: int) -> str:
    return f"\0boxlink listens on {show_address(host, port)}"
