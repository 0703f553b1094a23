"""One running boxlink program, and the events that it says: a JSON object a line on its stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WAIT_S = 60.0


class ProgramError(Exception):
    """A program ended, or did not do in time what it should; the message says what it said last."""


def boxlink_command() -> list[str]:
    """The command of the environment that runs us."""
    return [str(Path(sys.executable).parent / "boxlink")]


class Program:
    """Runs in a session of its own: a Ctrl-C at the terminal is for whoever started it to hand on."""

    def __init__(self, name: str, arguments: list[str], environ: Mapping[str, str], errors: Path) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self._errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*boxlink_command(), *arguments, "--json"],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"events-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    self.events.append(json.loads(line))

    def find(self, event: str, **fields: object) -> dict[str, Any] | None:
        """The last of such events with these values; None where it was not said yet."""
        wanted = {"event": event, **fields}
        for said in self.events[::-1]:
            if wanted.items() <= said.items():
                return said
        return None

    def wait_event(self, event: str, seconds: float = WAIT_S, **fields: object) -> dict[str, Any]:
        """That event, said before or soon. ProgramError when it does not come."""
        deadline = time.monotonic() + seconds
        while (found := self.find(event, **fields)) is None:
            self.check()
            if time.monotonic() > deadline:
                raise ProgramError(f"boxlink {self.name} did not say {event!r} within {seconds:.0f} s")
            time.sleep(0.02)
        return found

    def check(self) -> None:
        """ProgramError when it has ended."""
        code = self.process.poll()
        if code is not None:
            said = self._errors.read_text(errors="replace")[-2000:]
            raise ProgramError(f"boxlink {self.name} ended with {code}: {said}")

    def terminate(self) -> None:
        """Ask it to end, if it has not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None when it is still there after that time."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        return code

    def kill(self) -> None:
        """End it at once, with what it started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
