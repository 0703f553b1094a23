"""File events, which only wake whoever looks: what is read from the directories is the truth."""

from __future__ import annotations

import logging

from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver


def file_events() -> BaseObserver:
    """An observer that is not started yet.

    What its library has to say of lost events, or of one that came while it was being stopped, is of no use to an
    operator: the next look at the directories makes up for it. Where a program has set up logging it is still heard.
    """
    logger = logging.getLogger("watchdog")
    if not logger.handlers:
        # Otherwise Python prints it on stderr for want of any handler (logging, "logging.lastResort").
        logger.addHandler(logging.NullHandler())
    return Observer()
