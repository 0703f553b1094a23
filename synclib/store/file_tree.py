"""A file store's tree: walked by directory descriptors, one component at a time, never through a symlink.

Where an object is: at its own name if that is a file, else at its aside name (file_names.py). Writers hold the
store's lock; readers hold nothing, so each change keeps every moment readable: an object that must make room for a
directory is linked to its aside name before it loses its own, and it never moves back while it exists.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from synclib.errors import Invalid
from synclib.store.base import ObjectInfo
from synclib.store.file_names import RESERVED, aside, decode, is_aside, split_key

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that someone put here must not wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def etag_of(found: os.stat_result) -> str:
    """Stamp and size; see file_lock.py for why it never comes twice."""
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


@contextmanager
def open_parents(root: int, parents: Sequence[bytes]) -> Iterator[int | None]:
    """The descriptor of a directory below ``root``; None when there is no such directory."""
    descriptor: int | None = os.dup(root)
    try:
        for name in parents:
            assert descriptor is not None
            child = _open_directory(descriptor, name)
            os.close(descriptor)
            descriptor = child
            if child is None:
                break
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def make_parents(root: int, parents: Sequence[bytes]) -> Iterator[int]:
    """As :func:`open_parents`, making what is not there; the caller holds the store's lock."""
    descriptor = os.dup(root)
    try:
        for name in parents:
            child = _open_directory(descriptor, name)
            if child is None:
                _make_room(descriptor, name)
                os.mkdir(name, 0o777, dir_fd=descriptor)
                os.fsync(descriptor)
                child = os.open(name, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def open_object(directory: int | None, name: bytes) -> int | None:
    """The descriptor of an object's file; None when there is none."""
    if directory is None:
        return None
    for candidate in (name, aside(name)):
        try:
            descriptor = os.open(candidate, _FILE, dir_fd=directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise strange(candidate) from error
            raise
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return descriptor
        os.close(descriptor)
        if not stat.S_ISDIR(mode):
            raise strange(candidate)
    return None


def find_object(directory: int | None, name: bytes) -> tuple[bytes, os.stat_result] | None:
    """(file name, status) of an object; None when there is none."""
    if directory is None:
        return None
    for candidate in (name, aside(name)):
        with suppress(FileNotFoundError):
            found = os.stat(candidate, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                return candidate, found
            if not stat.S_ISDIR(found.st_mode):
                raise strange(candidate)
    return None


def place(directory: int, name: bytes) -> bytes:
    """The file name under which an object is to be written; the caller holds the store's lock."""
    found = find_object(directory, name)
    if found is not None:
        return found[0]
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return name
    return aside(name)


def remove_object(directory: int, name: bytes) -> None:
    """Delete an object, if it is there; the caller holds the store's lock."""
    found = find_object(directory, name)
    if found is None:
        return
    if found[0] == name:
        # A writer that was killed while it made room left a second link.
        with suppress(FileNotFoundError):
            os.unlink(aside(name), dir_fd=directory)
    os.unlink(found[0], dir_fd=directory)


def _make_room(directory: int, name: bytes) -> None:
    """Move an object aside whose name is to be a directory's."""
    found = find_object(directory, name)
    if found is not None and found[0] == name:
        with suppress(FileNotFoundError):
            os.unlink(aside(name), dir_fd=directory)
        os.link(name, aside(name), src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.fsync(directory)
        os.unlink(name, dir_fd=directory)


def _open_directory(parent: int, name: bytes) -> int | None:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise strange(name) from None
        return None


def walk(directory: int, base: str, prefix: str, after: bytes, strangers: list[bytes]) -> Iterator[ObjectInfo]:
    """The objects below a directory whose keys begin with ``base``, in byte order of the keys.

    Only the names in the directories from here to the object shown are held. One of the symlinks and special files
    that are met is added to ``strangers``.
    """
    for sorted_by, name, is_directory in _children(directory, strangers):
        key = base + sorted_by.decode().removesuffix("/")
        ordered = base.encode() + sorted_by
        if not is_directory:
            found = find_object(directory, name) if key.startswith(prefix) and ordered > after else None
            if found is not None:
                yield ObjectInfo(key, found[1].st_size, etag_of(found[1]))
        elif ((key + "/").startswith(prefix) or prefix.startswith(key + "/")) and (
            ordered > after or after.startswith(ordered)
        ):
            child = _open_directory(directory, name)
            if child is not None:
                try:
                    yield from walk(child, key + "/", prefix, after, strangers)
                finally:
                    os.close(child)


def _children(directory: int, strangers: list[bytes]) -> list[tuple[bytes, bytes, bool]]:
    """(component, file name, is a directory) in the order of keys: a directory sorts as its component and ``/``."""
    children: dict[bytes, tuple[bytes, bytes, bool]] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory and is_aside(name):
                name = name[:-1]
            component = decode(name)
            if component is None or name == RESERVED:
                continue
            if not is_directory and not entry.is_file(follow_symlinks=False):
                strangers[:] = [name]
                continue
            sorted_by = component.encode() + (b"/" if is_directory else b"")
            children[sorted_by] = (sorted_by, name, is_directory)
    return sorted(children.values())


def listed_directory(prefix: str) -> tuple[str, list[bytes]] | None:
    """(key prefix, components) of the deepest directory that holds all keys of a prefix; None when no key has it."""
    base, slash, _ = prefix.rpartition("/")
    if not slash:
        return "", []
    try:
        parents, name = split_key(base)
    except Invalid:
        return None
    return base + slash, [*parents, name]


def strange(name: bytes, kind: type[Invalid] = Invalid) -> Invalid:
    return kind(
        f"{os.fsdecode(name)!r} in the store is a symlink or no ordinary file",
        hint="a store holds files and directories only; mount or bind a file system where it should span disks",
    )
