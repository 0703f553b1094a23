"""Pieces of what a store holds, kept on the local disk up to a limit: for readers that come again.

Pieces are appended to segment files; a SQLite file says where each is. Every piece is guarded by an XXH3-64 over its
name and bytes, so nothing has to be flushed: after a crash, or when another process has dropped a segment, a row that
no longer fits is a miss. When the limit is reached the oldest segment goes whole. Whoever asked verifies the bytes
against the digest that it has of them; what is kept here is a help, never a source of truth.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import xxhash

_SCHEMA = """
CREATE TABLE IF NOT EXISTS segment (number INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER);
CREATE TABLE IF NOT EXISTS piece (
    name BLOB PRIMARY KEY, segment INTEGER, offset INTEGER, length INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS piece_segment ON piece (segment);
"""
_GUARD_BYTES = 8
_SEGMENTS_MIN = 8  # so that dropping one loses an eighth at most
_SEGMENT_BYTES_MAX = 64 << 20
_OPEN_MAX = 32


class PieceCache:
    """One process's hold on a cache directory; safe between threads and between processes.

    An error of the disk or of SQLite is a miss: reading goes on without the cache.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._segment_bytes = min(_SEGMENT_BYTES_MAX, max(1, limit_bytes // _SEGMENTS_MIN))
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}  # segment -> descriptor
        self._own = 0  # the segment that this process appends to; 0 when it has none yet
        self._own_bytes = 0
        self._database: sqlite3.Connection | None = None
        with self._forgiving():
            directory.mkdir(parents=True, exist_ok=True)
            self._database = self._connect()

    def _connect(self) -> sqlite3.Connection:
        path = self._directory / "pieces.sqlite"
        try:
            return _open_database(path)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            for file in self._directory.iterdir():
                file.unlink(missing_ok=True)
            return _open_database(path)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error):
            # Not again in this process: a full or broken disk would be asked for every piece.
            self._database = None

    def get(self, name: bytes) -> bytes | None:
        """A piece's bytes, or None."""
        found: bytes | None = None
        with self._lock, self._forgiving():
            if self._database is not None:
                row = self._database.execute(
                    "SELECT segment, offset, length FROM piece WHERE name = ?", (name,)
                ).fetchone()
                if row is not None:
                    found = self._read(name, *row)
                    if found is None:
                        self._database.execute("DELETE FROM piece WHERE name = ?", (name,))
        return found

    def _read(self, name: bytes, segment: int, offset: int, length: int) -> bytes | None:
        try:
            data = os.pread(self._descriptor(segment), _GUARD_BYTES + length, offset)
        except FileNotFoundError:
            return None
        guard, piece = data[:_GUARD_BYTES], data[_GUARD_BYTES:]
        return piece if len(piece) == length and guard == _guard(name, piece) else None

    def _descriptor(self, segment: int) -> int:
        if segment not in self._open:
            while len(self._open) >= _OPEN_MAX:
                oldest = next(number for number in self._open if number != self._own)
                os.close(self._open.pop(oldest))
            self._open[segment] = os.open(self._path(segment), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        return self._open[segment]

    def _path(self, segment: int) -> Path:
        return self._directory / f"{segment:012}.pieces"

    def put(self, name: bytes, data: bytes | memoryview) -> None:
        """Keep a piece; one larger than a segment is not kept."""
        size = _GUARD_BYTES + len(data)
        if size > self._segment_bytes:
            return
        with self._lock, self._forgiving():
            if self._database is None:
                return
            if not self._own or self._own_bytes + size > self._segment_bytes:
                self._begin_segment()
            os.pwrite(self._descriptor(self._own), _guard(name, data) + bytes(data), self._own_bytes)
            self._database.execute(
                "INSERT OR REPLACE INTO piece VALUES (?, ?, ?, ?)", (name, self._own, self._own_bytes, len(data))
            )
            self._own_bytes += size

    def _begin_segment(self) -> None:
        assert self._database is not None
        # Counted as full from the start: several processes share the limit.
        cursor = self._database.execute("INSERT INTO segment (bytes) VALUES (?)", (self._segment_bytes,))
        assert cursor.lastrowid is not None
        self._own, self._own_bytes = cursor.lastrowid, 0
        os.close(os.open(self._path(self._own), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        rows = self._database.execute("SELECT number, bytes FROM segment ORDER BY number DESC").fetchall()
        kept_bytes = 0
        for number, size in rows:
            kept_bytes += size
            if kept_bytes > self._limit_bytes and number != self._own:
                self._drop_segment(number)

    def _drop_segment(self, number: int) -> None:
        assert self._database is not None
        self._database.execute("DELETE FROM piece WHERE segment = ?", (number,))
        self._database.execute("DELETE FROM segment WHERE number = ?", (number,))
        self._path(number).unlink(missing_ok=True)
        if number in self._open:
            os.close(self._open.pop(number))

    def drop(self, name: bytes) -> None:
        """Forget a piece: whoever verified it found it wrong."""
        with self._lock, self._forgiving():
            if self._database is not None:
                self._database.execute("DELETE FROM piece WHERE name = ?", (name,))

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
            while self._open:
                os.close(self._open.popitem()[1])


def _open_database(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = TRUNCATE")
    database.execute("PRAGMA synchronous = OFF")
    database.executescript(_SCHEMA)
    return database


def _guard(name: bytes, data: bytes | memoryview) -> bytes:
    guard = xxhash.xxh3_64(name)
    guard.update(data)
    return guard.digest()
