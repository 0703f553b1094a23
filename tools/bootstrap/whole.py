"""Whether a release that stands here is as it was made: a digest of all of it, noted beside it (``<seq>.whole``).

It tells a change by mistake: whoever may write there may write the note too.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

_BYTE_CODE = b"__pycache__"  # Python writes there by itself, whenever a program runs
_CHARACTERS = 64


def whole_path(place: Path, seq: int) -> Path:
    return place / f"{seq}.whole"


def note_whole(place: Path, seq: int, directory: Path) -> None:
    """``directory``: the release as it was just made of what was checked. Any OSError."""
    path = whole_path(place, seq)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(digest_of(directory))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_whole(place: Path, seq: int) -> bool | None:
    """None where nothing was noted."""
    try:
        with whole_path(place, seq).open(errors="replace") as file:
            noted = file.read(_CHARACTERS + 1)
    except FileNotFoundError:
        return None
    return noted == digest_of(place / str(seq))


def digest_of(directory: Path) -> str:
    """SHA-256, hex, of all below it."""
    digest = hashlib.sha256()
    for part in tree_parts(directory, _sha256_of):
        digest.update(part)
    return digest.hexdigest()


def _sha256_of(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def tree_parts(directory: Path, of_file: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """What a digest of a tree is counted over: every name, kind, mode, target and content below it, byte code apart."""
    top = os.fsencode(directory)
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name != _BYTE_CODE)
        for name in sorted((*folders, *files)):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = of_file(path)
            for part in (os.path.relpath(path, top), b"%o" % mode, content):
                yield b"%d:%s" % (len(part), part)
