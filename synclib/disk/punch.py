"""fallocate(2) with holes, which Python does not have."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def punch(descriptor: int, start: int, stop: int) -> None:
    """Give the blocks of a range back to the disk; it reads as zeros then. OSError where the file system cannot."""
    if stop > start and _libc.fallocate64(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, stop - start):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
