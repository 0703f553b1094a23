"""Large memory for bulk bytes."""

from __future__ import annotations

import contextlib
import mmap


def allocate(length: int) -> mmap.mmap:
    """Memory of ``length`` zeros; what is not written costs nothing. In huge pages where the system has them: to touch
    it the first time then takes a tenth as long."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # there are none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
