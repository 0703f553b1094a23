"""``boxlink sync`` that is killed at the Nth step of swapping a volume: ``python -m tests.mount.killed_sync N sync …``.

A step: a call that changes a volume, what stands, or who serves it; it is killed just
before one, which is just after the one before."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import synclib.engine.lazy_place
import tools.mounting
from synclib.volume.local import LocalDriver
from tools.entry import main

left = int(sys.argv.pop(1))


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        reached()
        return function(*args, **kwargs)

    return run


def reached() -> None:
    global left  # noqa: PLW0603
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


for place, name in (
    (LocalDriver, "create_volume"),
    (LocalDriver, "attach"),
    (LocalDriver, "detach"),
    (LocalDriver, "delete_volume"),
    (synclib.engine.lazy_place, "write_atomic"),
    (synclib.engine.lazy_place, "put_mount"),
    (tools.mounting, "renew"),
    (tools.mounting, "start_mount"),
):
    setattr(place, name, counted(getattr(place, name)))

if __name__ == "__main__":
    main()
