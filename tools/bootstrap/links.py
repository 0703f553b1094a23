"""Which of the releases on a disk runs: a link that is switched in one step.

DIR/<name>/<seq>/       a release
           current      the one that runs
           previous     the one before, for `boxlink release rollback`
           next         one that `boxlink up` is to try
           <seq>.ran    that seq was `current` once, and another came in its place
           <seq>.back   a rollback took it back: what runs it goes over to `current`, until it is chosen again
"""

from __future__ import annotations

import os
import re
from pathlib import Path

CURRENT, PREVIOUS, NEXT = "current", "previous", "next"
SEQ = re.compile(r"[1-9][0-9]{0,17}")


def linked_seq(place: Path, name: str) -> int | None:
    """The seq that a link names; None where there is none, or it leads nowhere."""
    try:
        target = os.readlink(place / name)
    except OSError:
        return None
    return int(target) if SEQ.fullmatch(target) and (place / target).is_dir() else None


def switch(place: Path, seq: int) -> bool:
    """Let ``current`` be that seq; whether it was another. Whoever is killed in between leaves the old one running."""
    old = linked_seq(place, CURRENT)
    choose(place, seq)
    if old == seq:
        return False
    if old is not None:
        note_ran(place, old)
        link(place, PREVIOUS, old)
    link(place, CURRENT, seq)
    return True


def ran_path(place: Path, seq: int) -> Path:
    return place / f"{seq}.ran"


def note_ran(place: Path, seq: int) -> None:
    """Before another takes the place of the one that runs; the link that is switched next makes it last."""
    ran_path(place, seq).touch()


def back_path(place: Path, seq: int) -> Path:
    return place / f"{seq}.back"


def take_back(place: Path, seq: int) -> None:
    """Before the one to go back to is linked, which makes it count and last."""
    back_path(place, seq).touch()


def choose(place: Path, seq: int) -> None:
    """Whatever took it back, it may run."""
    back_path(place, seq).unlink(missing_ok=True)


def is_taken_back(place: Path, seq: int) -> bool:
    """Whether what runs it is to go over to ``current``, which is another."""
    return os.path.exists(back_path(place, seq)) and linked_seq(place, CURRENT) not in (None, seq)


def link(place: Path, name: str, seq: int) -> None:
    temporary = place / f".{name}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(str(seq))
    os.replace(temporary, place / name)
    flush(place)


def flush(directory: Path) -> None:
    """What was renamed in a directory is so also after the machine went down."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
