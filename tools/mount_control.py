"""The control socket of a mount: one request, one answer, both a JSON object and a line.

It lies in the mount's own directory, which only its owner may enter, and is answered by threads of its own: also while
every read waits for the store. Nobody has to touch the mount to ask. Requests: synclib/engine/mount_control.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from synclib.core.frame import DECODE_ERRORS
from synclib.engine.mount_control import Figures, MountControl, Request
from synclib.errors import BoxlinkError

_NAME = "control"
_ASK_S = 2.0
_REQUEST_BYTES_MAX = 4 << 20
_ANSWER_BYTES_MAX = 4 << 20
_AT_ONCE = 8


def answer_for_ever(directory: Path, control: MountControl) -> None:
    """Serve the socket. Who asks and then says nothing holds up nobody else."""
    turns = threading.Semaphore(_AT_ONCE)
    with _place_of(directory) as path, socket.socket(socket.AF_UNIX) as listener:
        # Bound beside it and renamed: a worker takes the place of another without a moment in which nobody answers.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.{os.getpid()}")
        listener.bind(f"{path}.{os.getpid()}")
        listener.listen()
        os.rename(f"{path}.{os.getpid()}", path)
        while True:
            asking, _ = listener.accept()
            turns.acquire()
            threading.Thread(target=_answer, args=(asking, control, turns), daemon=True).start()


def _answer(asking: socket.socket, control: MountControl, turns: threading.Semaphore) -> None:
    try:
        with asking, contextlib.suppress(OSError):
            asking.settimeout(_ASK_S)
            try:
                request: Request = msgspec.json.decode(_read_line(asking, _REQUEST_BYTES_MAX), type=Request)
                answer = control.answer(request)
            except DECODE_ERRORS as error:
                answer = {"error": {"kind": "invalid", "message": f"no such request: {error}"}}
            except BoxlinkError as error:
                answer = {"error": error.as_dict()}
            asking.sendall(json.dumps(answer).encode() + b"\n")
    finally:
        turns.release()


def ask(directory: Path, request: Request | None = None, seconds: float = _ASK_S) -> dict[str, Any] | None:
    """What the mount of a directory answers, by default how it does; None when nobody answers in time."""
    try:
        with _place_of(directory) as path, socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(seconds)
            asking.connect(path)
            asking.sendall(msgspec.json.encode(request or Figures()) + b"\n")
            found = json.loads(_read_line(asking, _ANSWER_BYTES_MAX))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_line(peer: socket.socket, bytes_max: int) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < bytes_max and (piece := peer.recv(1 << 16)):
        data += piece
    return data


@contextlib.contextmanager
def _place_of(directory: Path) -> Iterator[str]:
    """Where the socket is, in few bytes: a path of a socket has 107 at most (unix(7))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)
