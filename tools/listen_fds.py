"""The descriptors that a service manager kept for this process (sd_listen_fds(3), LISTEN_FDS)."""

from __future__ import annotations

import os

_FIRST = 3
_COUNT_MAX = 1024
_NAMES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def take_descriptors() -> list[tuple[str, int]]:
    """(name, descriptor) of each that is for this process, which are its own from now on: no program that it starts
    inherits them, or hears of them. None where the environment speaks to another process, or makes no sense."""
    count, process, names = (os.environ.pop(name, "") for name in _NAMES)
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit() and int(count) <= _COUNT_MAX):
        return []
    called = names.split(":") if names else []
    found: list[tuple[str, int]] = []
    for index in range(int(count)):
        descriptor = _FIRST + index
        try:
            os.set_inheritable(descriptor, False)
        except OSError:  # it is not open, whatever was said
            continue
        found.append((called[index] if index < len(called) else "", descriptor))
    return found
