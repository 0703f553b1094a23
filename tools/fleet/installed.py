"""What was installed of a release's wheels, so that it is known again: a digest of its venv, kept beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blake3 import blake3

from synclib.disk.atomic import write_atomic
from synclib.engine.release import VENV, release_command
from synclib.errors import Corrupt

_DIGEST_CHARACTERS = 64
# Python writes byte code there by itself, whenever a program runs.
_BYTE_CODE = b"__pycache__"


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
    """BLAKE3, hex, of every name, kind, mode, target and content below ``directory``/venv, byte code apart."""
    top = os.fsencode(directory / VENV)
    digest = blake3()
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name != _BYTE_CODE)
        for name in sorted((*folders, *files)):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = blake3(max_threads=blake3.AUTO).update_mmap(os.fsdecode(path)).digest()
            for part in (os.path.relpath(path, top), b"%o" % mode, content):
                digest.update(b"%d:%s" % (len(part), part))
    return digest.hexdigest()
