"""Which files of a tree are links of one another: found by one walk, kept in sorted files, not in memory (I10).

A tree of backups may have ten million paths, all of them with several links. A row is an inode and the name of its
group; rows are in order, and of each stretch only the first one is in memory.
"""

from __future__ import annotations

import bisect
import os
import stat
import struct
import tempfile
from collections.abc import Iterator

from blake3 import blake3

from synclib.core.entry import HARDLINK_BYTES
from synclib.core.names import PATH_BYTES_MAX, is_reserved
from synclib.disk.sorted_rows import SortedRows

# Device, inode, the place in the walk, the group's name if this is its first path: in order by these.
_SEEN = struct.Struct(f">QQQ{HARDLINK_BYTES}s")
_INODE = struct.Struct(">QQ")
_ROW_BYTES = _INODE.size + HARDLINK_BYTES
_STRETCH_BYTES = 128 * _ROW_BYTES  # what one lookup reads
_MEMORY_BYTES = 8 << 20


class LinkGroups:
    """The groups of two or more links below ``top``, as it would lie under ``prefix``. OSError of temporary files.

    A group's name follows from the path of its first link in the order of a scan. What cannot be read is left to the
    scan to say.
    """

    def __init__(self, top: bytes, prefix: bytes) -> None:
        self._firsts: list[bytes] = []  # of each stretch, its first inode
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - lives as long as this
        with SortedRows(_SEEN.size) as rows:
            for number, (device, inode, path) in enumerate(_linked(top, prefix)):
                rows.add(_SEEN.pack(device, inode, number, blake3(path).digest(HARDLINK_BYTES)))
            self._keep(rows.sorted())

    def _keep(self, rows: Iterator[bytes]) -> None:
        """Write the first row of each inode that has another one."""
        first = kept = b""
        offset = 0
        for row in rows:
            inode = row[: _INODE.size]
            if inode != first[: _INODE.size]:
                first = row
                continue
            if inode == kept:
                continue
            kept = inode
            if offset % _STRETCH_BYTES == 0:
                self._firsts.append(inode)
            self._file.write(inode + first[-HARDLINK_BYTES:])
            offset += _ROW_BYTES

    def close(self) -> None:
        self._file.close()

    def name(self, status: os.stat_result) -> bytes:
        """The group of a file; empty when the walk found only this link of it."""
        inode = _INODE.pack(status.st_dev, status.st_ino)
        stretch = bisect.bisect_right(self._firsts, inode) - 1
        if stretch < 0:
            return b""
        self._file.seek(stretch * _STRETCH_BYTES)
        rows = self._file.read(_STRETCH_BYTES)
        at = rows.find(inode)
        while at >= 0 and at % _ROW_BYTES:  # the same bytes, but not at the start of a row
            at = rows.find(inode, at + 1)
        return rows[at + _INODE.size : at + _ROW_BYTES] if at >= 0 else b""


def _linked(top: bytes, prefix: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(device, inode, path in the dataset) of each file with several links, in the order of a scan."""
    pending = [(top, prefix)]
    while pending:
        path, directory = pending.pop()
        children = []
        try:
            with os.scandir(path) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError:
            continue
        for item in items:
            inner = directory + b"/" + item.name if directory else item.name
            if (path == top and is_reserved(b"", item.name)) or len(inner) > PATH_BYTES_MAX:
                continue
            try:
                if item.is_dir(follow_symlinks=False):
                    children.append((item.path, inner))
                    continue
                status = item.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                yield status.st_dev, status.st_ino, inner
        pending += reversed(children)
