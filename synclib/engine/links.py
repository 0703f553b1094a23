"""Hard-link groups: their members are one inode here too, and nobody else's file is.

The first member in the chain's order leads: it is compared and fetched like any file. The others are linked to it when
all files are placed. Who leads, and whose an inode is, stands in a database that moves to the disk as it grows.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from synclib.core.entry import Entry
from synclib.core.names import split_path
from synclib.disk.spool import Spool

if TYPE_CHECKING:
    import sqlite3

_SCHEMA = """
CREATE TABLE leader (gang BLOB PRIMARY KEY, path BLOB, inode TEXT) WITHOUT ROWID;
CREATE TABLE inode (inode TEXT PRIMARY KEY, owner BLOB) WITHOUT ROWID;
"""


class Link(msgspec.Struct, frozen=True):
    """A member that has to be linked to its leader."""

    entry: Entry
    leader: bytes  # a path

    @property
    def source(self) -> tuple[bytes, bytes]:
        return split_path(self.leader)


class Links:
    """What is known of groups and inodes while a restore compares; ``missing``: what has to be linked."""

    def __init__(self) -> None:
        self.missing: Spool[Link] = Spool(Link)
        self._database: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            import sqlite3

            # An unnamed file that sqlite removes (sqlite3_open: an empty name); little of it stays in memory.
            self._database = sqlite3.connect("", isolation_level=None)
            self._database.executescript(_SCHEMA)
            self._database.execute("BEGIN")
        return self._database

    def is_linked(self, entry: Entry, group: bytes, found: os.stat_result | None) -> bool:
        """Whether a member is no matter of its own: it is its leader's inode already, or has been noted to become it.

        ``found``: what stands at its path, if that is right by itself.
        """
        database = self._open()
        inode = _inode(found)
        row = database.execute("SELECT path, inode FROM leader WHERE gang = ?", (group,)).fetchone()
        if row is None:
            if inode and not self.is_own(group, found):
                inode = ""
            database.execute("INSERT INTO leader VALUES (?, ?, ?)", (group, entry.path, inode))
            return False
        path, leading = row
        if not inode or inode != leading:
            self.missing.add(Link(entry, path))
        return True

    def is_own(self, owner: bytes, found: os.stat_result | None) -> bool:
        """Whether a file with several links is not another entry's, or another group's."""
        inode = _inode(found)
        if found is None or found.st_nlink < 2:
            return True
        database = self._open()
        database.execute("INSERT OR IGNORE INTO inode VALUES (?, ?)", (inode, owner))
        row = database.execute("SELECT owner FROM inode WHERE inode = ?", (inode,)).fetchone()
        return bool(row[0] == owner)


def _inode(found: os.stat_result | None) -> str:
    return "" if found is None else f"{found.st_dev:x}:{found.st_ino:x}"
