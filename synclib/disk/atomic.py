"""Small files replaced whole: a reader sees the old text or the new one, also after a crash."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path

TEMPORARY = ".tmp"
_libc = ctypes.CDLL(None, use_errno=True)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a temporary file beside ``path``, flush it to the disk, rename it, flush the directory.

    A writer that is killed leaves ``<name>.<…>.tmp``: beside a marker that is a name of ours too, never a dataset's.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        # An interrupt may come just after the rename.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Flush the whole file system that holds ``path`` (syncfs(2)): once for many files, where fsync costs each."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs failed", os.fspath(path))
    finally:
        os.close(descriptor)
