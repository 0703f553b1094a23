"""Which chunks a dataset already has, and where: a local SQLite file, so that content is stored once.

Only a help: a row counts only if its pack is live in the session that asks, so a stale or foreign row costs nothing.
A session is one publish; workers in other processes use the same file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from synclib.core.entry import ChunkRef

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chunk (
    hash BLOB PRIMARY KEY, pack BLOB, offset INTEGER, stored INTEGER, plain INTEGER, codec INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS live (session TEXT, pack BLOB, PRIMARY KEY (session, pack)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS indexed (run BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_BATCH = 500  # well below SQLite's limit of variables in a statement


class ChunkIndex:
    """One process's connection. Not safe between threads."""

    def __init__(self, path: Path, session: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.session = session
        try:
            self._open()
        except sqlite3.DatabaseError:
            # It can always be made anew from the runs.
            path.unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)

    def is_indexed(self, run: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM indexed WHERE run = ?", (run,)).fetchone() is not None

    def add_run(self, run: bytes, chunks: Iterable[ChunkRef]) -> None:
        """Record all chunks that a run names."""
        self._database.execute("BEGIN IMMEDIATE")
        self._insert(chunks)
        self._database.execute("INSERT OR IGNORE INTO indexed VALUES (?)", (run,))
        self._database.execute("COMMIT")

    def add_pack(self, pack: bytes, chunks: Iterable[ChunkRef]) -> None:
        """Record a pack that this session has uploaded."""
        self._database.execute("BEGIN IMMEDIATE")
        self._insert(chunks)
        self.add_live([pack])
        self._database.execute("COMMIT")

    def _insert(self, chunks: Iterable[ChunkRef]) -> None:
        self._database.executemany(
            "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, ?)",
            ((c.hash, c.pack, c.offset, c.stored_bytes, c.plain_bytes, c.codec) for c in chunks),
        )

    def add_live(self, packs: Iterable[bytes]) -> None:
        rows = ((self.session, pack) for pack in packs)
        self._database.executemany("INSERT OR IGNORE INTO live VALUES (?, ?)", rows)

    def lookup(self, hashes: Sequence[bytes]) -> dict[bytes, ChunkRef]:
        """Those of the chunks that a live pack holds."""
        found: dict[bytes, ChunkRef] = {}
        for first in range(0, len(hashes), _BATCH):
            batch = hashes[first : first + _BATCH]
            marks = ",".join("?" * len(batch))
            rows = self._database.execute(
                "SELECT chunk.* FROM chunk JOIN live ON live.session = ? AND live.pack = chunk.pack "
                f"WHERE hash IN ({marks})",
                (self.session, *batch),
            )
            found.update((row[0], ChunkRef(*row)) for row in rows)
        return found

    def end_session(self) -> None:
        self._database.execute("DELETE FROM live WHERE session = ?", (self.session,))

    def close(self) -> None:
        self._database.close()
