"""Real `boxlink` processes of one machine whose state, cache and store lie in one directory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOXLINK = str(Path(sys.executable).parent / "boxlink")


class Machine:
    def __init__(self, place: Path, store: str = "") -> None:
        self.place = place
        self.store = store or f"file://{place}/store"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BOXLINK_"))},
            "BOXLINK_STORE": self.store,
            "BOXLINK_NODE": "n1",
            "BOXLINK_CONFIG": str(place / "boxlink.toml"),
            "XDG_STATE_HOME": str(place / "state"),
            "XDG_CACHE_HOME": str(place / "cache"),
            "HOME": str(place),
        }

    def start(self, *words: object, **options: Any) -> subprocess.Popen[bytes]:
        """In a session of its own, so that all that it leaves behind can be found."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [BOXLINK, *(word if isinstance(word, bytes) else str(word) for word in words)]
        return subprocess.Popen(command, env=self.environment, cwd=self.place, start_new_session=True, **options)

    def run(self, *words: object, code: int = 0) -> bytes:
        """What it says on stdout; its exit code must be ``code``."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            end_session(process)
        assert process.returncode == code, (words, process.returncode, out, err)
        assert b"Traceback" not in err, err.decode(errors="replace")
        return out

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        """Its one object on stdout."""
        found = json.loads(self.run(*words, "--json", code=code))
        assert isinstance(found, dict)
        return found


def members(session: int) -> set[int]:
    """Processes of a session that still run (proc(5), /proc/pid/stat; zombies apart)."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{name}/stat").read_text()
                fields = text[text.rindex(")") + 2 :].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.add(int(name))
    return found


def wait_for_end(session: int, seconds: float = 10) -> set[int]:
    """Who of a session is still there after a bounded wait."""
    deadline = time.monotonic() + seconds
    while (left := members(session)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def end_session(process: subprocess.Popen[bytes]) -> None:
    for member in members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def started(machine: Machine, *words: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = machine.start(*words, **options)
    try:
        yield process
    finally:
        end_session(process)
