"""What a first boot says: on the console, and in ``data/log/bootstrap.log``, which sync sends up."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_BYTES_MAX = 4 << 20


class Log:
    """Lines are JSON in the file. A file that cannot be written stops nothing: the console has them all.

    ``send``: sends what is in the file up, once it is known where to (:mod:`.send_log`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.send: Callable[[], None] = lambda: None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size > _BYTES_MAX:
                os.replace(path, path.with_name(f"{path.name}.1"))

    def failed(self, why: str, hint: str) -> None:
        """The last word of a boot that cannot go on: no sync will send it up."""
        self.say("failed", "error", why=why, hint=hint)
        self.send()

    def say(self, event: str, level: str = "info", **fields: object) -> None:
        shown = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        with contextlib.suppress(OSError):
            print(f"boxlink bootstrap: {event} {shown}".rstrip(), file=sys.stderr, flush=True)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"event": event, "level": level, "at": at, "role": "bootstrap", **fields}) + "\n"
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, line.encode(errors="replace"))
            finally:
                os.close(descriptor)
