"""A journal of what a long pass has done: 16-byte names, appended, so that a pass that is broken off goes on."""

from __future__ import annotations

import os
from pathlib import Path

_NAME_BYTES = 16


class Journal:
    """``names`` are those that were written before; a torn last one is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        data = path.read_bytes()
        whole = len(data) // _NAME_BYTES * _NAME_BYTES
        self.names = {data[start : start + _NAME_BYTES] for start in range(0, whole, _NAME_BYTES)}
        os.ftruncate(self._descriptor, whole)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def add(self, name: bytes) -> None:
        os.write(self._descriptor, name)

    def close(self, *, is_done: bool) -> None:
        """A pass that came to its end needs no journal."""
        os.close(self._descriptor)
        if is_done:
            self._path.unlink(missing_ok=True)
