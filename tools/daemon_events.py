"""What daemons say: every event into their log file, and to whoever started them."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import click

from tools.cli_context import Context, shown
from tools.daemon_log import open_log
from tools.heard import marked


class Events:
    """An event and its fields: a JSON line in the log file, and, unless quiet, a line on stdout or stderr."""

    def __init__(self, context: Context, role: str, directory: Path) -> None:
        self._log = open_log(role, directory, context.is_verbose)
        self._context = context
        self._lock = threading.Lock()

    def info(self, event: str, **fields: object) -> None:
        self._log.info(event, **fields)
        self._show("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log.warning(event, **fields)
        self._show("warning", event, fields)

    def _show(self, level: str, event: str, fields: dict[str, object]) -> None:
        # Whoever started us may have gone away, or its disk be full: the log file has it all.
        with self._lock, contextlib.suppress(OSError):
            if self._context.is_json:
                click.echo(marked(json.dumps({"event": event, "level": level, **fields}, default=repr)))
            elif not self._context.is_quiet:
                told = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
                click.echo(marked(shown(f"boxlink: {event} {told}".rstrip())), err=True)


def open_events(context: Context, role: str, directory: Path) -> Events:
    """The events of one daemon; its log file is ``<directory>/<role>-<pid>.log``."""
    return Events(context, role, directory)


class Notes:
    """As :class:`Events` for what has no log file: lines on stderr alone."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def info(self, event: str, **fields: object) -> None:
        told = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        self._context.note(f"boxlink: {event} {told}".rstrip())

    warning = info
