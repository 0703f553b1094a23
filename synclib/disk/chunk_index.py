"""Which chunks a dataset already has, and where: a local SQLite file, so that content is stored once.

Only a help: a row counts only if its pack is live in the session that asks, so a stale or foreign row costs nothing.
A session is one publish; workers in other processes use the same file.

It is not flushed to the disk, so a file that an older start of the machine left is not believed (a row must be right
where its pack is live). Not in WAL mode: there the last to close and the next to open meet without waiting.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from synclib.core.entry import ChunkRef
from synclib.core.pack import PackInfo
from synclib.errors import BoxlinkError, Full, Invalid, Unavailable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS place (id INTEGER PRIMARY KEY, chunk BLOB);
CREATE TABLE IF NOT EXISTS live_pack (
    session TEXT, pack BLOB, object_bytes INTEGER, slot_count INTEGER, slots_digest BLOB, PRIMARY KEY (session, pack)
    ) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS indexed_run (run BLOB PRIMARY KEY, next_key BLOB) WITHOUT ROWID;
"""
# A chunk's place as one value: hash, pack, offset, stored and plain length, codec.
_PLACE = struct.Struct("<32s16sQIIB")
# The start of a hash as a key; of two chunks with the same one only the later is found.
_ID = struct.Struct("<q")
_BATCH = 500  # well below SQLite's limit of variables in a statement


def index_path(directory: Path, boot: str) -> Path:
    """The index in a dataset's cache directory, of this start of the machine; those of older ones are removed."""
    path = directory / f"chunks-{boot}.sqlite"
    for other in directory.glob("chunks*.sqlite*"):
        if not other.name.startswith(path.name):
            other.unlink(missing_ok=True)
    return path


class ChunkIndex:
    """One process's connection. Not safe between threads."""

    def __init__(self, path: Path, session: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.session = session
        self._live: set[bytes] = set()  # packs that were seen to be live: they stay so for the session
        with _translated(path):
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                # It can always be made anew from the runs.
                for suffix in ("", "-journal"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = TRUNCATE")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)

    def next_key(self, run: bytes) -> bytes | None:
        """The key from which on a run's entries are not recorded; None when all are."""
        row = self._database.execute("SELECT next_key FROM indexed_run WHERE run = ?", (run,)).fetchone()
        if row is None:
            return b""
        key: bytes | None = row[0]
        return key

    def add_run(self, run: bytes, chunks: Iterable[ChunkRef], next_key: bytes | None = None) -> None:
        """Record chunks that a run names: those of its entries before ``next_key``, or all."""
        with self._transaction():
            self._insert(chunks)
            self._database.execute("INSERT OR REPLACE INTO indexed_run VALUES (?, ?)", (run, next_key))

    def add_pack(self, pack: PackInfo, chunks: Iterable[ChunkRef]) -> None:
        """Record a pack that this session has uploaded."""
        with self._transaction():
            self._insert(chunks)
            self._add_live([pack])

    def packs(self, ulids: Iterable[bytes]) -> list[PackInfo]:
        """What the session knows of live packs: also of one that another worker has uploaded just now."""
        found = []
        with _translated(self.path):
            for ulid in ulids:
                row = self._database.execute(
                    "SELECT pack, object_bytes, slot_count, slots_digest FROM live_pack WHERE session = ? AND pack = ?",
                    (self.session, ulid),
                ).fetchone()
                found.append(PackInfo(*row))
        return found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the body or nothing of it."""
        with _translated(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                # A full disk has rolled it back already.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _insert(self, chunks: Iterable[ChunkRef]) -> None:
        rows = [
            (*_ID.unpack_from(c.hash), _PLACE.pack(c.hash, c.pack, c.offset, c.stored_bytes, c.plain_bytes, c.codec))
            for c in chunks
        ]
        rows.sort()  # neighbours in the table one after the other
        self._database.executemany("INSERT OR REPLACE INTO place VALUES (?, ?)", rows)

    def add_live(self, packs: Iterable[PackInfo]) -> None:
        with self._transaction():
            self._add_live(packs)

    def _add_live(self, packs: Iterable[PackInfo]) -> None:
        rows = ((self.session, *pack.as_tuple()) for pack in packs)
        self._database.executemany("INSERT OR IGNORE INTO live_pack VALUES (?, ?, ?, ?, ?)", rows)

    def lookup(self, hashes: Sequence[bytes]) -> dict[bytes, ChunkRef]:
        """Those of the chunks that a live pack holds."""
        found: dict[bytes, ChunkRef] = {}
        for first in range(0, len(hashes), _BATCH):
            wanted = {_ID.unpack_from(chunk_hash)[0]: chunk_hash for chunk_hash in hashes[first : first + _BATCH]}
            marks = ",".join("?" * len(wanted))
            with _translated(self.path):
                rows = self._database.execute(f"SELECT id, chunk FROM place WHERE id IN ({marks})", list(wanted))
                for number, place in rows.fetchall():
                    chunk = ChunkRef(*_PLACE.unpack(place))
                    if chunk.hash == wanted[number] and self._is_live(chunk.pack):
                        found[chunk.hash] = chunk
        return found

    def _is_live(self, pack: bytes) -> bool:
        if pack not in self._live:
            row = self._database.execute(
                "SELECT 1 FROM live_pack WHERE session = ? AND pack = ?", (self.session, pack)
            ).fetchone()
            if row is None:
                return False
            self._live.add(pack)
        return True

    def end_session(self) -> None:
        # Rows that stay behind are of a session that never comes again; how the publish went is said elsewhere.
        with contextlib.suppress(sqlite3.Error):
            self._database.execute("DELETE FROM live_pack WHERE session = ?", (self.session,))

    def close(self) -> None:
        self._database.close()


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _kind(error, path) from error


def _kind(error: sqlite3.Error, path: Path) -> BoxlinkError:
    """The kind of an error of SQLite (sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0)
    shown, text = str(path), f"the index of chunks failed: {error}"
    if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE:
        return Full(text, hint="make room, then run it again: it continues", path=shown)
    if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Invalid(text, hint="check the owner and rights of the cache directory", path=shown)
    return Unavailable(text, hint="run it again; if that does not help, remove the file", path=shown)
