"""What a path has beside its status: hard links always, owners and extended attributes on request.

Spellings are part of the format: docs/format/README.md, "Extras".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator

from synclib.core.entry import HARDLINK, OWNER, XATTR, XATTRS, Extra
from synclib.disk.faults import raise_if_full
from synclib.disk.link_groups import LinkGroups
from synclib.errors import Unavailable

_OWNER = struct.Struct("<II")
# Those of file systems that have no attributes, or none for this kind of path.
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.ENODATA)


class Extras:
    """Reads the extras of what one scan of ``top`` finds, as it would lie under ``prefix``."""

    def __init__(
        self, top: bytes, prefix: bytes, *, links: bool = True, owners: bool = False, xattrs: bool = False
    ) -> None:
        self._top, self._prefix = top, prefix
        self._links, self._owners, self._xattrs = links, owners, xattrs
        self._groups: LinkGroups | None = None
        self.is_asked = owners or xattrs

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()

    def of(self, path: bytes, status: os.stat_result, notes: dict[bytes, str]) -> Extra:
        """The extras of one path, by name; what cannot be carried is said in ``notes``, by the last component.

        OSError when the path cannot be looked at.
        """
        found: list[tuple[str, bytes]] = []
        if self._links and status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            group = self._group(status)
            if group:
                found.append((HARDLINK, group))
        if self._owners:
            found.append((OWNER, _OWNER.pack(status.st_uid, status.st_gid)))
        if self._xattrs:
            known = len(notes)
            found += _xattrs_of(path, notes)
            if len(notes) == known:
                # These are all: a restore removes others.
                found.append((XATTRS, b""))
        return tuple(found)

    def _group(self, status: os.stat_result) -> bytes:
        """The group of a file with several links, empty when the scan finds only this one."""
        if self._groups is None:
            # Whether a first link has a second one below the top is not known until all of it was seen.
            with _of_temporary_files():
                self._groups = LinkGroups(self._top, self._prefix)
        with _of_temporary_files():
            return self._groups.name(status)


@contextlib.contextmanager
def _of_temporary_files() -> Iterator[None]:
    """Whoever lists a directory would take their errors for those of the file that it is at: for one that is gone."""
    try:
        yield
    except OSError as error:
        raise_if_full(error)
        raise Unavailable(
            f"the list of hard links cannot be kept: {error.strerror}",
            hint="is there a directory for temporary files (TMPDIR)? run it again",
        ) from error


def _xattrs_of(path: bytes, notes: dict[bytes, str]) -> list[tuple[str, bytes]]:
    found = []
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            notes[os.path.basename(path)] = f"its attribute {os.fsencode(name)!r} is left out: its name is no UTF-8"
            continue
        try:
            found.append((XATTR + name, os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                raise
    return sorted(found)
