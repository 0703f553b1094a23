"""Lines that ``boxlink up`` hears from a process of its own that has a log file itself: so that they stand in one log.

``up`` says to its children who hears them. A daemon so started puts a mark before each line that is in its own log file
as well: ``up`` shows such a line, and does not write it a second time.
"""

from __future__ import annotations

import os

HEARD_BY = "BOXLINK_HEARD_BY"  # in the environment: the pid of the ``up`` that reads what its child says
_LOGGED = "\x1elogged\x1e"


def is_heard() -> bool:
    """Whether ``boxlink up`` itself is at the other end of this process's stdout and stderr. What a child has started
    inherits the word, and is not meant."""
    return os.environ.get(HEARD_BY) == str(os.getppid())


def marked(text: str) -> str:
    """A line that is in a log file of this process's own, as it is to be said."""
    return f"{_LOGGED}{text}" if is_heard() else text


def without_mark(line: bytes) -> tuple[bytes, bool]:
    """A line that was heard, and whether it is in a log file already."""
    mark = _LOGGED.encode()
    return line.removeprefix(mark), line.startswith(mark)
