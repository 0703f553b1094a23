"""What stands on this machine of a release, and whether it is what runs next.

Only a first boot takes what user-data pins, or the store's `current`. From then on `current` here says what runs: it is
moved by who follows a channel, once a release has passed its trial, and by `boxlink release activate` and `rollback`.

DIR/<name>/<seq>.json     what was signed of a seq, or pinned
           <seq>.whole    the digest of what was made of it
           booted         which user-data the role was started with
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .failure import Failure
from .links import CURRENT, SEQ
from .statement import BYTES_MAX, Statement, check, parse_statement
from .user_data import UserData
from .whole import is_whole, whole_path

_BOOTED = "booted"
_BOOTED_BYTES_MAX = 4 << 10


def seq_of_current(place: Path, told: UserData) -> int | None:
    """The seq that runs next whatever the store says; None at a first boot: the role was never started here, or with
    other words in its user-data, which count anew."""
    try:
        with (place / _BOOTED).open("rb") as file:
            if file.read(_BOOTED_BYTES_MAX) != _asked(told):
                return None
        target = os.readlink(place / CURRENT)
    except OSError:
        return None
    return int(target) if SEQ.fullmatch(target) else None


def note_booted(place: Path, told: UserData) -> None:
    """The role is started now."""
    if seq_of_current(place, told) is None:
        replace(place / _BOOTED, _asked(told))


def _asked(told: UserData) -> bytes:
    return f"{told.store}\n{told.release}\n{told.seq or ''}\n{told.sha256}\n".encode()[:_BOOTED_BYTES_MAX]


def standing(place: Path, seq: int, trusted: set[str], pin: str) -> tuple[Statement, bool] | None:
    """What was signed of a seq that stands here as it was made, and whether a trusted key has; None where that is not
    sure, and the store has to be asked."""
    recorded = recorded_statement(place, seq)
    if recorded is None or not (place / str(seq)).is_dir():
        return None
    try:
        is_signed = check(recorded, trusted, pin_of(recorded, pin))
    except Failure:
        return None
    return (recorded, is_signed) if is_whole(place, seq) else None


def pin_of(statement: Statement, pin: str) -> str:
    """The pin of user-data is of the seq that boots first: another that came later has to be signed."""
    return pin if statement.boot_sha256 == pin else ""


def stands(place: Path, statement: Statement) -> bool:
    """Whether what stands here was made of exactly this, and is as it was made as far as that was noted."""
    recorded = recorded_statement(place, statement.seq)
    if recorded is None or recorded.signed_bytes() != statement.signed_bytes():
        return False
    return (place / str(statement.seq)).is_dir() and is_whole(place, statement.seq) is not False


def recorded_statement(place: Path, seq: int) -> Statement | None:
    try:
        with (place / f"{seq}.json").open("rb") as file:
            return parse_statement(file.read(BYTES_MAX + 1), place.name, seq)
    except (OSError, Failure):
        return None


def take_away(place: Path, seq: int) -> None:
    """What stands here of a seq; nothing says any more that it is one, should we be killed."""
    for path in (place / f"{seq}.json", whole_path(place, seq), place / f"{seq}.installed"):
        path.unlink(missing_ok=True)
    directory, aside = place / str(seq), place / f"{seq}.gone"
    shutil.rmtree(aside, ignore_errors=True)
    if directory.exists():
        directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
