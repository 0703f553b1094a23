"""A release's seq as one tar.gz for first boots, which have nothing but Python's standard library.

It is made from what was published, not from the directory, and is a function of that alone: no owners, no times of now,
one order.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

from synclib.core.entry import Entry, Kind
from synclib.reader import File, Reader

_LEVEL = 6
_PIECE_BYTES = 4 << 20


def write_boot_tar(reader: Reader, path: Path) -> tuple[str, int]:
    """Write it to ``path``: its SHA-256 and its length."""
    with open(path, "w+b") as file:
        with (
            gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            for entry in reader.walk():
                _add(tar, reader, entry)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def _add(tar: tarfile.TarFile, reader: Reader, entry: Entry) -> None:
    info = tarfile.TarInfo(os.fsdecode(entry.path))
    info.mode = entry.mode & 0o777
    info.mtime = entry.mtime_ns // 1_000_000_000
    if entry.kind == Kind.DIRECTORY:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif entry.kind == Kind.SYMLINK:
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(entry.target)
        tar.addfile(info)
    else:
        info.size = entry.size
        opened = reader.open(entry.path)
        try:
            tar.addfile(info, _body(opened, entry.size))
        finally:
            opened.close()


def _body(file: File, size: int) -> BinaryIO:
    return io.BufferedReader(_Body(file, size), _PIECE_BYTES)


class _Body(io.RawIOBase):
    def __init__(self, file: File, size: int) -> None:
        self._file, self._size, self._offset = file, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.pread(self._offset, min(len(buffer), self._size - self._offset))
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)
