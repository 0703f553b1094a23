"""What ``boxlink up`` shows: its own events, and its processes' lines behind their names.

All of it is in log files as well. So a terminal that is stopped, or a reader that has gone, loses lines here and never
holds a process up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from pathlib import Path

from synclib.clock import SystemClock
from tools.cli_context import Context, shown
from tools.daemon_log import RotatingFile, open_log
from tools.heard import without_mark
from tools.log_text import line_text, timed

# What a pipe that is writable takes at once (pipe(7), PIPE_BUF).
_LINE_BYTES_MAX = 4096
_CUT_CHARACTERS = 600  # of which JSON makes at most six bytes each


class Console:
    """``directory``: where the log files are, ``<role>-<process>.log`` and our own."""

    def __init__(self, context: Context, role: str, names: list[str], directory: Path) -> None:
        self._context = context
        self._log = open_log("up", directory, context.is_verbose)
        self._files = {name: RotatingFile(directory / f"{role}-{name}.log") for name in names}
        self._width = max(map(len, names))

    def line(self, name: str, data: bytes, *, is_own: bool = False) -> None:
        """One line that a process has said. ``is_own``: one of boxlink's, whose lines say their time in the file."""
        is_logged = False
        if is_own:
            data, is_logged = without_mark(data)
        text = data.decode(errors="replace")
        if not is_logged:
            self._files[name].write_line(timed(text, name, SystemClock()) if is_own else text)
        if self._context.is_json:
            said: dict[str, object] = {"event": "output", "process": name, "line": text}
            if len(json.dumps(said)) >= _LINE_BYTES_MAX:
                said |= {"line": text[:_CUT_CHARACTERS], "is_cut": True}
            self._write(1, json.dumps(said))
        elif not self._context.is_quiet:
            self._write(1, f"{name:<{self._width}} | {shown(line_text(text) if is_own else text)}")

    def event(self, event: str, **fields: object) -> None:
        """Something that ``up`` did itself, or saw."""
        self._log.info(event, **fields)
        if self._context.is_json:
            self._write(1, json.dumps({"event": event, **fields}))
        elif not self._context.is_quiet:
            told = " ".join(f"{name}={value}" for name, value in fields.items())
            self._write(2, f"boxlink: {event} {told}".rstrip())

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, descriptor: int, text: str) -> None:
        data = text.encode(errors="replace")
        if len(data) >= _LINE_BYTES_MAX:
            data = data[: _LINE_BYTES_MAX - 8] + b" ..."
        with contextlib.suppress(OSError):  # among them a full disk
            (sys.stdout if descriptor == 1 else sys.stderr).flush()
            if select.select([], [descriptor], [], 0)[1]:
                os.write(descriptor, data + b"\n")
