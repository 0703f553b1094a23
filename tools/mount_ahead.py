"""Processes of a mount that are started before it is known what they will serve, so that they live by then.

To import what a worker needs takes longer than to fetch what it must know; each waits for its orders on its standard
input, and ends when whoever started it closes that or dies.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

AHEAD = "ahead"
# In a mount's directory: what its processes say.
LOG = "log"
# As well: says that another seq has been put in its place.
REPLACED = "replaced"
_ORDER_BYTES_MAX = 16 << 10


class KeeperAhead:
    """A keeper that :func:`tools.mounting.start_mount` tells its mount, or that is closed. ``state``: the directory of
    this node's, by which one who looks for its processes finds it."""

    def __init__(self, state: Path) -> None:
        orders, ordered = os.pipe2(os.O_CLOEXEC)
        ready, told = os.pipe2(os.O_CLOEXEC)
        self._orders: BinaryIO = open(ordered, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._answers: BinaryIO = open(ready, "rb")  # noqa: SIM115 - as well
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.mount_keeper", str(state), AHEAD, str(told)],
                stdin=orders,
                cwd="/",
                start_new_session=True,
                pass_fds=(told,),
            )
        except OSError:
            self._answers.close()
            self._orders.close()
            raise
        finally:
            os.close(orders)
            os.close(told)

    def begin(self, spec: Path) -> str:
        """Tell it the path of its spec; what it answers: ``ok``, why not, or nothing where it has ended."""
        with suppress(BrokenPipeError):
            self._orders.write(os.fsencode(spec) + b"\n")
        with self._answers:
            return self._answers.readline().decode().strip()

    def close(self) -> None:
        """It is not needed: it and its worker end. After :meth:`begin` it goes on."""
        self._orders.close()
        if not self._answers.closed:
            self._answers.close()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def keeper_ahead(state: Path, cache: Path) -> KeeperAhead | None:
    """One for a dataset of this cache directory; None where all of a seq was here: there it may be that no process need
    serve it."""
    from synclib.disk.hydrated import SUFFIX

    return None if any(cache.glob(f"lazy/*{SUFFIX}")) else KeeperAhead(state)


class WorkerAhead:
    """A worker that a keeper started before it had a connection."""

    def __init__(self, state: str) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.mount_worker", state, AHEAD], stdin=theirs.fileno()
            )

    def begin(self, device: int, told: int, words: list[str]) -> bool:
        """Hand it what another one is given when it is started; whether it can have got that."""
        with self._ours:
            try:
                socket.send_fds(self._ours, [b"\0".join(map(os.fsencode, words))], [device, told])
            except OSError:
                return False
        return self.process.poll() is None


def orders_of_worker() -> tuple[list[str], int, int] | None:
    """What :meth:`WorkerAhead.begin` hands over, when it does; None where it never will."""
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as keeper:
        data, descriptors, _, _ = socket.recv_fds(keeper, _ORDER_BYTES_MAX, 2)
    if len(descriptors) != 2:
        return None
    device, told = descriptors
    return [os.fsdecode(word) for word in data.split(b"\0")], device, told


def log_to(path: str) -> None:
    """What is said from now on is added to a file."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    # Nothing more is to come there.
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
