"""A directory as a sorted stream, in the order of entries; one directory's names are in memory at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec

from synclib.core.entry import TIME_NS_MAX, TIME_NS_MIN, Kind
from synclib.core.names import NAME_BYTES_MAX, PATH_BYTES_MAX, is_reserved, sort_key


class Found(msgspec.Struct, frozen=True, gc=False):
    """What a scan says of one path. ``problem`` is set where it cannot be published: it is then skipped."""

    directory: bytes
    name: bytes
    kind: int
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    problem: str = ""

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.directory else self.name

    @property
    def key(self) -> bytes:
        return sort_key(self.directory, self.name)


def scan(top: bytes, prefix: bytes = b"") -> Iterator[Found]:
    """Everything below ``top``, as it would lie under ``prefix``; markers and state at the top are left out.

    An unreadable directory is given twice: as a directory, and, in place of its content, as a problem with an empty
    name. OSError when ``top`` itself cannot be read.
    """
    pending = [(top, prefix)]
    while pending:
        path, directory = pending.pop()
        try:
            with os.scandir(path) as listing:
                listed = sorted(listing, key=lambda item: item.name)
        except OSError as error:
            if path == top:
                raise
            yield Found(directory, b"", Kind.DIRECTORY, problem=error.strerror or str(error))
            continue
        children: list[tuple[bytes, bytes]] = []
        for item in listed:
            if path == top and is_reserved(b"", item.name):
                continue
            found = _look(directory, item)
            if found is None:
                continue
            yield found
            if found.kind == Kind.DIRECTORY and not found.problem:
                children.append((item.path, found.path))
        pending += reversed(children)


def _look(directory: bytes, item: os.DirEntry[bytes]) -> Found | None:
    """One path; None when it vanished meanwhile."""
    try:
        status = item.stat(follow_symlinks=False)
        mode = status.st_mode
        if len(directory) + 1 + len(item.name) > PATH_BYTES_MAX or len(item.name) > NAME_BYTES_MAX:
            return Found(directory, item.name, Kind.FILE, problem="its path is longer than 4096 bytes")
        permissions = stat.S_IMODE(mode)
        if not stat.S_ISDIR(mode) and not TIME_NS_MIN <= status.st_mtime_ns <= TIME_NS_MAX:
            return Found(directory, item.name, Kind.FILE, problem="its time is before 1678 or after 2262")
        if stat.S_ISREG(mode):
            return Found(directory, item.name, Kind.FILE, permissions, status.st_mtime_ns, status.st_size)
        if stat.S_ISDIR(mode):
            return Found(directory, item.name, Kind.DIRECTORY, permissions)
        if stat.S_ISLNK(mode):
            target = os.readlink(item.path)
            return Found(directory, item.name, Kind.SYMLINK, 0o777, status.st_mtime_ns, 0, target)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Found(directory, item.name, Kind.FILE, problem=error.strerror or str(error))
    return Found(directory, item.name, Kind.FILE, problem="it is a socket, a pipe or a device")
