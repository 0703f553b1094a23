"""A directory as sorted listings and as a sorted stream; one directory's names are in memory at a time.

A listing's rows say all that stat does and that is published. They are plain tuples, so that an unchanged directory
is one comparison of bytes (disk/stat_cache.py); what a row means is asked only where it differs (:func:`found_of`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from synclib.core.entry import TIME_NS_MAX, TIME_NS_MIN, Extra, Kind
from synclib.core.names import NAME_BYTES_MAX, PATH_BYTES_MAX, is_reserved, sort_key
from synclib.disk.scan_extras import Extras

# (name, st_mode, mtime in ns, size of a file, target of a symlink, extra); a directory's time is 0.
Row = tuple[bytes, int, int, int, bytes, Extra]
_KIND_BITS = 0o170000


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
    extra: Extra = ()

    @property
    def path(self) -> bytes:
        return self.directory + b"/" + self.name if self.directory else self.name

    @property
    def key(self) -> bytes:
        return sort_key(self.directory, self.name)


@dataclass
class Listing:
    """What is in one directory, by name. ``problems`` and ``notes`` say by name what could not be looked at, and what
    of a path cannot be published although the path can."""

    rows: list[Row] = field(default_factory=list)
    problems: dict[bytes, str] = field(default_factory=dict)
    notes: dict[bytes, str] = field(default_factory=dict)


def list_directory(path: bytes, directory: bytes, extras: Extras, *, is_top: bool) -> Listing:
    """The directory at ``path``, which is ``directory`` in the dataset. OSError when it cannot be read.

    Markers and state at the top are left out, and so is what vanishes meanwhile.
    """
    listing = Listing()
    add, has_more = listing.rows.append, extras.is_asked
    with os.scandir(path) as items:
        for item in items:
            name = item.name
            if is_top and is_reserved(b"", name):
                continue
            try:
                status = item.stat(follow_symlinks=False)
                mode = status.st_mode
                kind = mode & _KIND_BITS
                extra: Extra = ()
                if has_more or (status.st_nlink > 1 and kind == stat.S_IFREG):
                    extra = extras.of(item.path, status, listing.notes)
                if kind == stat.S_IFREG:
                    add((name, mode, status.st_mtime_ns, status.st_size, b"", extra))
                elif kind == stat.S_IFLNK:
                    add((name, mode, status.st_mtime_ns, 0, os.readlink(item.path), extra))
                else:
                    add((name, mode, 0, 0, b"", extra))
            except FileNotFoundError:
                continue
            except OSError as error:
                listing.problems[name] = error.strerror or str(error)
                add((name, stat.S_IFREG, 0, 0, b"", ()))
    listing.rows.sort()
    return listing


def found_of(directory: bytes, row: Row, problem: str = "") -> Found:
    """What a row means; its ``problem`` where it cannot be published."""
    name, mode, mtime_ns, size, target, extra = row
    if problem:
        return Found(directory, name, Kind.FILE, problem=problem)
    if len(directory) + 1 + len(name) > PATH_BYTES_MAX or len(name) > NAME_BYTES_MAX:
        return Found(directory, name, Kind.FILE, problem="its path is longer than 4096 bytes")
    permissions = stat.S_IMODE(mode)
    if not TIME_NS_MIN <= mtime_ns <= TIME_NS_MAX:
        return Found(directory, name, Kind.FILE, problem="its time is before 1678 or after 2262")
    kind = mode & _KIND_BITS
    if kind == stat.S_IFREG:
        return Found(directory, name, Kind.FILE, permissions, mtime_ns, size, extra=extra)
    if kind == stat.S_IFDIR:
        return Found(directory, name, Kind.DIRECTORY, permissions, extra=extra)
    if kind == stat.S_IFLNK:
        return Found(directory, name, Kind.SYMLINK, 0o777, mtime_ns, 0, target, extra=extra)
    return Found(directory, name, Kind.FILE, problem="it is a socket, a pipe or a device")


def scan(top: bytes, prefix: bytes = b"") -> Iterator[Found]:
    """Everything below ``top``, as it would lie under ``prefix``; markers and state at the top are left out.

    An unreadable directory is given twice: as a directory, and, in place of its content, as a problem with an empty
    name. Without extras. OSError when ``top`` itself cannot be read.
    """
    extras = Extras(top, prefix, links=False)
    pending = [(top, prefix)]
    while pending:
        path, directory = pending.pop()
        try:
            listing = list_directory(path, directory, extras, is_top=path == top)
        except OSError as error:
            if path == top:
                raise
            yield Found(directory, b"", Kind.DIRECTORY, problem=error.strerror or str(error))
            continue
        children: list[tuple[bytes, bytes]] = []
        for row in listing.rows:
            found = found_of(directory, row, listing.problems.get(row[0], ""))
            yield found
            if found.kind == Kind.DIRECTORY and not found.problem:
                children.append((os.path.join(path, found.name), found.path))
        pending += reversed(children)
