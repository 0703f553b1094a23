"""A file's bytes for the chunker; holes are told without being read (lseek(2), SEEK_HOLE and SEEK_DATA)."""

from __future__ import annotations

import errno
import os

_BLOCK_BYTES = 512  # st_blocks counts these, whatever the file system's blocks are


def is_sparse(status: os.stat_result) -> bool:
    """Whether a file takes less room than its size: it may have holes, or its file system compresses."""
    return status.st_blocks * _BLOCK_BYTES < status.st_size


class HoleReader:
    """The first ``size`` bytes of an open file, and one more if there are more, so that its growth shows."""

    def __init__(self, descriptor: int, size: int, *, has_holes: bool) -> None:
        self._descriptor, self._size, self._has_holes = descriptor, size, has_holes

    def read(self, view: memoryview, offset: int) -> int:
        wanted = min(len(view), self._size + 1 - offset)
        filled = 0
        while filled < wanted:
            count = os.preadv(self._descriptor, [view[filled:wanted]], offset + filled)
            if not count:
                break
            filled += count
        return filled

    def zeros_from(self, offset: int) -> int:
        if not self._has_holes or offset >= self._size:
            return 0
        try:
            return min(os.lseek(self._descriptor, offset, os.SEEK_DATA), self._size) - offset
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                return self._size - offset
            if error.errno == errno.EINVAL:  # this file system tells no holes
                return 0
            raise
