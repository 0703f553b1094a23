"""What the local disk says, as kinds of errors: the one place that reads errno."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from synclib.errors import BoxlinkError, Full, Invalid, Missing, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBUSY)


def disk_error(error: OSError) -> BoxlinkError:
    """The kind of an OSError of the local disk."""
    path = error.filename
    shown = os.fsdecode(path) if isinstance(path, str | bytes) else ""
    text = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        hint = "raise the limit of a file's size (ulimit -f, LimitFSIZE=), then run it again: it continues"
        return Full(text, hint=hint, path=shown)
    if error.errno in _FULL:
        return Full(text, hint="make room, then run it again: it continues", path=shown)
    if error.errno in _REFUSED:
        return Invalid(f"the local disk refused it: {text}", hint="check the owner and rights", path=shown)
    if error.errno == errno.ENOENT:
        return Missing(f"it is gone: {text}", path=shown)
    if is_of_the_process(error):
        return Unavailable(text, hint="raise the limit (ulimit -n, LimitNOFILE=), then run it again: it continues")
    return Unavailable(f"the local disk failed: {text}", hint="see the kernel's log", path=shown)


def is_of_the_process(error: OSError) -> bool:
    """Whether it concerns no file, but how many this process or the machine may open."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def is_of_the_world(error: OSError) -> bool:
    """Whether the disk may say this to anyone; other errors only a bug can cause."""
    return error.errno in (*_FULL, *_REFUSED, *_FAILED, errno.ENOENT)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What the local disk may say to anyone becomes a kind; an OSError that only a bug can cause stays what it is."""
    try:
        yield
    except OSError as error:
        if is_of_the_world(error):
            raise disk_error(error) from error
        raise


@contextlib.contextmanager
def full_disk_is_an_error() -> Iterator[None]:
    """ENOSPC, EDQUOT and a file-size limit become Full; all else passes."""
    try:
        yield
    except OSError as error:
        raise_if_full(error)
        raise


def raise_if_full(error: OSError) -> None:
    """Full where the disk is."""
    if error.errno in _FULL:
        raise disk_error(error) from error
