"""What was installed of a release's wheels, so that it is known again: a digest of its venv, kept beside it."""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from synclib.disk.atomic import write_atomic
from synclib.engine.release import VENV, release_command
from synclib.errors import Corrupt
from tools.bootstrap.whole import tree_parts

_DIGEST_CHARACTERS = 64


def installed_path(place: Path, seq: int) -> Path:
    return place / f"{seq}.installed"


def note_installed(place: Path, seq: int, directory: Path) -> None:
    """``directory``: the release as it was just installed, from wheels that were checked."""
    write_atomic(installed_path(place, seq), _digest(directory).encode())


def check_installed(place: Path, seq: int) -> None:
    """Corrupt where the venv of a release is not what was installed. What a first boot installed has no digest here."""
    directory = place / str(seq)
    try:
        with installed_path(place, seq).open("rb") as file:
            noted = file.read(_DIGEST_CHARACTERS + 1)
    except FileNotFoundError:
        return
    if noted != _digest(directory).encode():
        raise Corrupt(
            "it is not as it was installed from the release's wheels",
            hint=f"{release_command('fetch', place, seq)} brings it anew, once its directory is moved away",
            path=str(directory / VENV),
        )


def _digest(directory: Path) -> str:
    """BLAKE3, hex, of all below ``directory``/venv."""
    digest = blake3()
    for part in tree_parts(directory / VENV, _blake3_of):
        digest.update(part)
    return digest.hexdigest()


def _blake3_of(path: bytes) -> bytes:
    return blake3(max_threads=blake3.AUTO).update_mmap(os.fsdecode(path)).digest()
