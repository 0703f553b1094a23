"""A line of a log as words: daemons write JSON there, which is for programs."""

from __future__ import annotations

import json

from synclib.clock import Clock, now_text

_DEPTH_MAX = 3
_ROUTINE = "info"


def line_text(line: str) -> str:
    """A line of JSON as its time, its level unless that is routine, whose it is, the event and its fields; any other
    line as it is."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(found, dict):
        return line
    at, level, role, event = (_words(found.pop(name, ""), 0) for name in ("at", "level", "role", "event"))
    who = f"{role}: {event}" if role else event
    fields = (f"{name}={_words(value, 0)}" for name, value in found.items() if value not in ("", None))
    return " ".join(word for word in (at, "" if level == _ROUTINE else level, who, *fields) if word)


def timed(line: str, role: str, clock: Clock) -> str:
    """A line for a log file that says its time: as it is where it does so itself, else as an event of ``role``."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "at" in found:
        return line
    return json.dumps({"at": now_text(clock), "level": _ROUTINE, "role": role, "event": line}, ensure_ascii=False)


def _words(value: object, depth: int) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() | dict() if depth == _DEPTH_MAX:
            return "…"
        case list():
            return ", ".join(_words(each, depth + 1) for each in value) or "none"
        case dict():
            return ", ".join(f"{name} {_words(each, depth + 1)}" for name, each in value.items()) or "none"
        case _:
            return str(value)
