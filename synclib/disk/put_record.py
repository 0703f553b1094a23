"""Which blocks of a snapshot were put, and their digests: 32 bytes for each block of the volume, in its place, zeros
for those that were not. With it a put that was killed goes on, and the checksum over all blocks is known at the end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from synclib.disk.faults import disk_errors

_DIGEST_BYTES = 32  # SHA-256, of which none is zeros
_READ_BYTES = 1 << 20


class PutRecord:
    """Open at ``path``; safe between threads. What a power cut took of it is put again."""

    def __init__(self, path: Path) -> None:
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> PutRecord:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __contains__(self, index: int) -> bool:
        with disk_errors():
            found = os.pread(self._file, _DIGEST_BYTES, index * _DIGEST_BYTES)
        return len(found) == _DIGEST_BYTES and any(found)

    def note(self, index: int, digest: bytes) -> None:
        with disk_errors():
            os.pwrite(self._file, digest, index * _DIGEST_BYTES)

    def clear(self) -> None:
        with disk_errors():
            os.ftruncate(self._file, 0)

    def summary(self) -> tuple[int, bytes]:
        """How many were put, and the SHA-256 over their digests by index (LINEAR, EBS direct APIs, 2019-11-02)."""
        count, total = 0, hashlib.sha256()
        for digest in self._digests():
            count += 1
            total.update(digest)
        return count, total.digest()

    def _digests(self) -> Iterator[bytes]:
        position = 0
        with disk_errors():
            while piece := os.pread(self._file, _READ_BYTES, position):
                position += len(piece)
                for at in range(0, len(piece), _DIGEST_BYTES):
                    digest = piece[at : at + _DIGEST_BYTES]
                    if any(digest):
                        yield digest
