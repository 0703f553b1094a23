"""A TCP port of the loopback that nobody listens on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

from synclib.clock import Entropy
from synclib.errors import Full

# Below the ports that the kernel gives to outgoing connections (ip(7), ip_local_port_range): one of those may be taken
# at the very moment when a server is started again.
_FIRST, _STOP = 20_000, 32_768


def free_port(taken: Collection[int], entropy: Entropy) -> int:
    """One that is not in ``taken``; Full where there is none."""
    start = int(entropy.uniform() * (_STOP - _FIRST))
    for step in range(_STOP - _FIRST):
        port = _FIRST + (start + step) % (_STOP - _FIRST)
        if port not in taken and _is_free(port):
            return port
    raise Full("every port from 20000 to 32767 is taken", hint="stop what listens on them")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False
