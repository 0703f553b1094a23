"""A stand-in for the part of systemd that keeps a service's descriptors (sd_notify(3), sd_listen_fds(3)).

It listens on a socket as systemd does, keeps what is sent with FDSTORE=1 under its FDNAME, drops a name on
FDSTOREREMOVE=1 and a descriptor that says it is over, and starts the service with what it has.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.e2e.boxlink_process import BOXLINK, Machine

# Puts the descriptors where they belong, and says in its own name that they are for it; then becomes the service.
_BECOME = """
import os, sys
count, names, *command = sys.argv[1:]
held = [int(word) for word in os.environ.pop("HELD").split()]
high = [os.dup2(fd, 200 + index, inheritable=False) for index, fd in enumerate(held)]
for fd in held:
    os.close(fd)
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class ServiceManager:
    """``stored``: (name, descriptor) in the order they came; ``heard``: all that was said."""

    def __init__(self, place: Path) -> None:
        self.path = place / "notify"
        self.stored: list[tuple[str, int]] = []
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            except OSError:
                return
            if data == b"end":
                return
            self._take(dict(line.split("=", 1) for line in data.decode().splitlines()), descriptors)
            self.heard.append(data.decode())

    def _take(self, said: dict[str, str], descriptors: list[int]) -> None:
        name = said.get("FDNAME", "stored")
        with self._turn:
            if said.get("FDSTORE") == "1":
                self.stored += [(name, descriptor) for descriptor in descriptors]
            elif said.get("FDSTOREREMOVE") == "1":
                for found, descriptor in self.stored:
                    if found == name:
                        os.close(descriptor)
                self.stored = [item for item in self.stored if item[0] != name]

    def put(self, name: str, descriptor: int) -> None:
        """Somebody else of the service has stored that."""
        with self._turn:
            self.stored.append((name, descriptor))

    def names(self) -> list[str]:
        """Of what is kept; what is over goes, as systemd sees by polling it."""
        with self._turn:
            for name, descriptor in list(self.stored):
                watch = select.poll()
                watch.register(descriptor, 0)
                if any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0)):
                    os.close(descriptor)
                    self.stored.remove((name, descriptor))
            return [name for name, _ in self.stored]

    def start(self, machine: Machine, *words: object, **options: Any) -> subprocess.Popen[bytes]:
        """The service's command, with all that is kept."""
        with self._turn:
            held = [descriptor for _, descriptor in self.stored]
            names = ":".join(name for name, _ in self.stored)
        command = [BOXLINK, *map(str, words)]
        environment = {**machine.environment, "NOTIFY_SOCKET": str(self.path), "HELD": " ".join(map(str, held))}
        return subprocess.Popen(
            ["/usr/bin/env", "python3", "-c", _BECOME, str(len(held)), names, *command],
            env=environment,
            cwd=machine.place,
            pass_fds=held,
            start_new_session=True,
            **options,
        )

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, contextlib.suppress(OSError):
            ours.sendto(b"end", str(self.path))
        self._thread.join(10)
        self._socket.close()
        for _, descriptor in self.stored:
            os.close(descriptor)
