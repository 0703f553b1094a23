"""Owners and extended attributes, as entries say them and as files have them.

Only root may give files away (chown(2)) and set attributes outside ``user.`` (xattr(7)); anyone else leaves those as
they are.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

from synclib.core.entry import OWNER, XATTR, XATTRS, Entry

_OWNER = struct.Struct("<II")


def owner_of(entry: Entry) -> tuple[int, int] | None:
    for name, value in entry.extra:
        if name == OWNER:
            uid, gid = _OWNER.unpack(value)
            return uid, gid
    return None


def left_out(entry: Entry, is_root: bool) -> Iterator[str]:
    """What of an entry this process may not set: ``owner``, ``xattr.trusted`` and the like."""
    if not is_root:
        for name, _ in entry.extra:
            if name == OWNER or (name.startswith(XATTR) and not _is_of_users(name)):
                yield ".".join(name.split(".")[:2])


def _is_of_users(name: str) -> bool:
    return name.startswith(XATTR + "user.")


def _xattrs(entry: Entry, is_root: bool) -> Iterator[tuple[bytes, bytes]]:
    for name, value in entry.extra:
        if name.startswith(XATTR) and (is_root or _is_of_users(name)):
            yield name.removeprefix(XATTR).encode(), value


def set_xattrs(path: int | bytes, entry: Entry, is_root: bool) -> str:
    """Give an open file, or a symlink by its path, its attributes; returns what went wrong, if anything did.

    After its owner, for a change of owner takes file capabilities away.
    """
    problem = ""
    wanted = dict(_xattrs(entry, is_root))
    follows = isinstance(path, int)
    for name, value in wanted.items():
        try:
            os.setxattr(path, name, value, follow_symlinks=follows)
        except OSError as error:
            problem = f"{os.fsdecode(name)}: {error.strerror}"
    for name in _strange(path, entry, wanted, is_root):
        try:
            os.removexattr(path, name, follow_symlinks=follows)
        except OSError as error:
            problem = f"{os.fsdecode(name)}: {error.strerror}"
    return problem


def _strange(path: int | bytes, entry: Entry, wanted: dict[bytes, bytes], is_root: bool) -> list[bytes]:
    """The attributes that a path has and its entry, of which all were recorded, has not, and this process may remove.

    What the system labels by itself (``security.``) stays.
    """
    if not any(name == XATTRS for name, _ in entry.extra):
        return []
    try:
        found = os.listxattr(path, follow_symlinks=isinstance(path, int))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise
        return []
    mine = (b"user.", b"trusted.", b"system.") if is_root else (b"user.",)
    return [name for name in map(os.fsencode, found) if name not in wanted and name.startswith(mine)]


def has_extras(path: bytes, entry: Entry, found: os.stat_result, is_root: bool) -> bool:
    """Whether what stands at a path has the owner and attributes that can be set here."""
    owner = owner_of(entry)
    if owner is not None and is_root and owner != (found.st_uid, found.st_gid):
        return False
    wanted = dict(_xattrs(entry, is_root))
    if any(_xattr(path, name) != value for name, value in wanted.items()):
        return False
    return not _strange(path, entry, wanted, is_root)


def _xattr(path: bytes, name: bytes) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            raise
        return None
