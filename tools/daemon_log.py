"""The log of a daemon: JSON lines in ``<role>-<pid>.log``, 16 MiB a file, 8 files, which the node sends up.

A line goes out in one write to a file opened for appending, so lines of several threads never mix. A rotation renames
the file, so whoever ships it knows it by its inode.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

from synclib.errors import Invalid

FILE_BYTES_MAX = 16 << 20
FILES_KEPT = 8
_DEBUG, _INFO = 10, 20


def open_log(role: str, directory: Path, is_verbose: bool) -> FilteringBoundLogger:
    """A logger that writes to ``<directory>/<role>-<pid>.log``; Invalid where that cannot be made."""
    log: FilteringBoundLogger = structlog.wrap_logger(
        _Lines(RotatingFile(directory / f"{role}-{os.getpid()}.log")),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=repr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_DEBUG if is_verbose else _INFO),
        role=role,
    )
    return log


class RotatingFile:
    """Appends lines, in any thread; at ``bytes_max`` the file becomes ``.1``, ``.1`` becomes ``.2`` and so on."""

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX, files_kept: int = FILES_KEPT) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._files_kept = files_kept
        self._lock = threading.Lock()
        self.lost_count = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        except OSError as error:
            raise Invalid(
                f"the log cannot be written: {error.strerror}", path=str(path), hint="check --data and its rights"
            ) from error
        self._size = os.fstat(self._descriptor).st_size

    def write_line(self, line: str) -> None:
        """Append ``line`` and its end. A full disk loses the line, counted, and never stops the daemon."""
        data = line.encode(errors="replace") + b"\n"
        with self._lock:
            try:
                if self._size and self._size + len(data) > self._bytes_max:
                    self._rotate()
                self._size += os.write(self._descriptor, data)
            except OSError as error:
                self.lost_count += 1
                if self.lost_count == 1:
                    with contextlib.suppress(OSError):  # it may be a file on the same disk
                        print(f"boxlink: log lines are being lost: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _rotate(self) -> None:
        for number in range(self._files_kept - 1, 0, -1):
            older = self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                older.rename(self._numbered(number))
        descriptor, self._descriptor = self._descriptor, self._open()
        os.close(descriptor)
        self._size = os.fstat(self._descriptor).st_size

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


class _Lines:
    """What structlog hands its rendered lines to."""

    def __init__(self, file: RotatingFile) -> None:
        self._file = file

    def msg(self, line: str) -> None:
        self._file.write_line(line)

    debug = info = warning = error = critical = msg
