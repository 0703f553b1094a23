"""Ends what the processes of a killed ``boxlink up`` have started: ``python -m tools.fleet.guard SOCKET``.

The kernel kills a child with its parent (prctl(2), PR_SET_PDEATHSIG), but not that child's children: the setting does
not cross a fork. A cgroup would end them all, and needs rights that an ``up`` in a terminal or a container does not
have. So a small process beside it holds the end of a socket on which the process groups are told that began and ended;
when the other end closes, for whatever reason, it kills the groups that are left. What went into a session of its own,
as the keepers of mounts do, is in none of them and lives on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable

_END_S = 5.0


class Guard:
    """The guard as ``up`` sees it. Safe in a child between fork and exec."""

    def __init__(self) -> None:
        self._told, its = socket.socketpair()
        with its:
            # A session of its own: a Ctrl-C, or a kill of the group of ``up``, is not meant for it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.fleet.guard", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(its.fileno(),),
                cwd="/",
            )

    def tell_begun(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def tell_ended(self, group: int) -> None:
        """All of it has ended, and its number may come to mean another."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Nothing is left that it would have to end."""
        self._told.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        # A child that has not executed its program yet has SIGPIPE at its default again, and would end by it.
        with contextlib.suppress(OSError):  # somebody has killed it: what it was for is lost, no more
            self._told.send(line.encode(), socket.MSG_NOSIGNAL)


def groups_left(lines: Iterable[bytes]) -> set[int]:
    """Process groups that began and did not end."""
    left: set[int] = set()
    for line in lines:
        sign, number = line[:1], line[1:].strip()
        if sign == b"+" and number.isdigit():
            left.add(int(number))
        elif sign == b"-" and number.isdigit():
            left.discard(int(number))
    return left


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(int(sys.argv[1]), "rb") as told:
        left = groups_left(told)
    # A group's number is taken while anything is in it, so it can mean no other one now.
    for group in left:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
