"""What the first link of each hard-link group was read to hold, for its further links: in a file as it grows (I10)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import msgspec

from synclib.core.entry import ChunkRef
from synclib.errors import Full, Unavailable

Content = tuple[ChunkRef, ...] | str  # a file's chunks, or why it has none

# So many groups are in memory; then all of them go to the file, in its order, and come back one by one.
_GROUPS_IN_MEMORY = 1 << 15
_SCHEMA = """
CREATE TABLE first_link (gang BLOB PRIMARY KEY, mtime_ns INTEGER, size INTEGER, content BLOB) WITHOUT ROWID;
PRAGMA cache_size = -16384;
"""
_decoder: msgspec.msgpack.Decoder[Content] = msgspec.msgpack.Decoder(Content)


class _Row(msgspec.Struct, gc=False):
    mtime_ns: int
    size: int
    content: bytes = b""  # packed; empty while it is read
    is_new: bool = True  # the file does not have it so


class LinkContents:
    """By group, what its first link looked like, and what it was read to hold."""

    def __init__(self) -> None:
        self._rows: dict[bytes, _Row] = {}
        self._database: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def lead(self, group: bytes, mtime_ns: int, size: int) -> tuple[int, int] | None:
        """None where this is the group's first link, which is noted; else (mtime_ns, size) of the one that is."""
        row = self._row(group)
        if row is None:
            self._add(group, _Row(mtime_ns, size))
            return None
        return row.mtime_ns, row.size

    def keep(self, group: bytes, content: Content) -> None:
        """What the first link, which was noted, holds."""
        row = self._row(group)
        assert row is not None
        row.content, row.is_new = msgspec.msgpack.encode(content), True

    def content(self, group: bytes) -> Content:
        """What was kept."""
        row = self._row(group)
        assert row is not None
        return _decoder.decode(row.content)

    def _row(self, group: bytes) -> _Row | None:
        row = self._rows.get(group)
        if row is None and self._database is not None:
            with _translated():
                found = self._database.execute(
                    "SELECT mtime_ns, size, content FROM first_link WHERE gang = ?", (group,)
                ).fetchone()
            if found is not None:
                row = _Row(found[0], found[1], found[2], is_new=False)
                self._add(group, row)
        return row

    def _add(self, group: bytes, row: _Row) -> None:
        if len(self._rows) >= _GROUPS_IN_MEMORY:
            self._spill()
        self._rows[group] = row

    def _spill(self) -> None:
        with _translated():
            if self._database is None:
                # An unnamed file that sqlite removes (sqlite3_open: an empty name).
                self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._database.executescript(_SCHEMA)
                self._database.execute("BEGIN")
            rows = sorted(self._rows.items(), key=lambda item: item[0])
            new = ((group, row.mtime_ns, row.size, row.content) for group, row in rows if row.is_new)
            self._database.executemany("INSERT OR REPLACE INTO first_link VALUES (?, ?, ?, ?)", new)
        self._rows = {}


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        text = f"the list of hard links failed: {error}"
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
            raise Full(text, hint="make room where temporary files are (TMPDIR), then run it again") from error
        raise Unavailable(text, hint="is there a directory for temporary files (TMPDIR)? run it again") from error
