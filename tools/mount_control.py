"""The control socket of a mount: whoever connects is told how it does, in one JSON object.

It lies in the mount's own directory, which only its owner may enter, and is answered by a thread of its own: also while
every read waits for the store. Nobody has to touch the mount to ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = "control"
_ASK_S = 2.0
_ANSWER_BYTES_MAX = 1 << 16


def answer_for_ever(directory: Path, figures: Callable[[], dict[str, object]]) -> None:
    """Serve the socket. A path of a socket has 107 bytes at most (unix(7)): so it is bound by way of the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"/proc/self/fd/{descriptor}/{_NAME}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen()
        while True:
            asking, _ = listener.accept()
            with asking, contextlib.suppress(OSError):
                asking.settimeout(_ASK_S)
                asking.sendall(json.dumps(figures()).encode())


def ask(directory: Path) -> dict[str, Any] | None:
    """How the mount of a directory does; None when nobody answers within two seconds."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ASK_S)
            asking.connect(f"/proc/self/fd/{descriptor}/{_NAME}")
            answer = b""
            while (piece := asking.recv(4096)) and len(answer) < _ANSWER_BYTES_MAX:
                answer += piece
        found = json.loads(answer)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return found if isinstance(found, dict) else None
