"""Opening what should be a regular file where anybody may have put something else."""

from __future__ import annotations

import errno
import os
import stat


def open_regular(path: bytes | str | os.PathLike[str]) -> int:
    """A descriptor to read a regular file with. FileNotFoundError where there is a pipe, a directory or a device: who
    opened a pipe in the usual way would wait for a writer for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file", os.fspath(path))
    return descriptor
