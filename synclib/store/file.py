"""``file:///dir``: a directory as an object store, safe between threads and processes of one machine.

An object is a file below the root (file_names.py). It is written aside, synced, and renamed; then its directory is
synced. Writers take turns by one lock (file_lock.py), readers need none: an open file never changes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import quote

from synclib.clock import Clock, Entropy
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Full, Invalid, Missing, Unavailable
from synclib.store import file_tree as tree
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Strangers
from synclib.store.file_lock import WriteLock, clean_leftovers, open_reserved, stamp, temporary_file
from synclib.store.file_names import split_key

_COPY_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
_OF_ANOTHER_KIND = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class FileStore:
    """The store below the directory ``root``, which must exist (:meth:`create`)."""

    def __init__(self, root: str, clock: Clock, entropy: Entropy) -> None:
        self.root = root
        self.url = "file://" + quote(os.fsencode(root))
        self._clock = clock
        self._entropy = entropy
        self._lock = WriteLock(clock)
        self._is_cleaned = False
        self._was_here = False

    def create(self) -> None:
        """Make the root directory; no error when it is there."""
        with _translated(self.root):
            os.makedirs(self.root, exist_ok=True)
            parent = os.open(os.path.dirname(os.path.abspath(self.root)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        with self._reading(key) as (descriptor, size, etag):
            if etag == if_none_match:
                return None
            if size > size_max:
                raise Corrupt(f"it has {size} bytes, {size_max} is the most that is expected", key=key)
            return Fetched(_pread(descriptor, 0, size, key), etag, size)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        with self._reading(key) as (descriptor, size, _):
            for start, stop in ranges:
                if not 0 <= start < stop <= size:
                    raise Corrupt(f"bytes {start} to {stop} are not in it: it has {size}", key=key)
            return [_pread(descriptor, start, stop - start, key) for start, stop in ranges]

    def get_suffix(self, key: str, length: int) -> Fetched:
        with self._reading(key) as (descriptor, size, etag):
            start = max(0, size - length)
            return Fetched(_pread(descriptor, start, size - start, key), etag, size)

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        with (
            _translated(key),
            self._open_root() as root,
            self._open_reserved(root) as reserved,
            temporary_file(reserved, self._entropy) as (temporary, temporary_name),
        ):
            _write(temporary, body)
            with self._lock.hold(reserved) as lock:
                stamp(temporary, lock, self._clock.wall_ns())
            os.fsync(temporary)
            with self._lock.hold(reserved):
                _check_conditions(root, key, if_absent, if_match)
                directory = _rename(reserved, temporary_name, root, key)
            _sync_directory(directory, key, is_conditional=if_absent or if_match is not None)
            return tree.etag_of(os.fstat(temporary))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """An unconditional delete is not synced: after a power cut the object may be there again."""
        parents, name = split_key(key)
        with _translated(key), self._open_root() as root, self._open_reserved(root) as reserved:
            with self._lock.hold(reserved), tree.open_parents(root, parents) as directory:
                found = tree.find_object(directory, name)
                if directory is None or found is None:
                    return
                if if_match is not None and tree.etag_of(found[1]) != if_match:
                    raise Conflict("it is no longer what it was", key=key)
                tree.remove_object(directory, name)
                synced = os.dup(directory)
            if if_match is None:
                os.close(synced)
            else:
                _sync_directory(synced, key, is_conditional=True)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        within = tree.listed_directory(prefix)
        with _translated(prefix), self._open_root() as root:
            if within is None:
                return
            base, parents = within
            with tree.open_parents(root, parents) as directory:
                if directory is not None:
                    strangers: list[bytes] = []
                    yield from tree.walk(directory, base, prefix, after.encode(), strangers)
                    if strangers:
                        # Not left out: who deletes what a listing does not show must not be misled.
                        raise tree.strange(strangers[0], Strangers)

    @contextmanager
    def _open_root(self) -> Iterator[int]:
        try:
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._was_here:
                raise Unavailable(f"the store at {self.url} is not there any more", hint="is it mounted?") from None
            raise Missing(
                f"there is no store at {self.url}",
                hint=f"is it mounted? else: boxlink init --store {self.url}",
            ) from None
        self._was_here = True
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _open_reserved(self, root: int) -> Iterator[int]:
        reserved = open_reserved(root)
        try:
            if not self._is_cleaned:
                self._is_cleaned = True
                clean_leftovers(reserved, self._clock.wall_ns())
            yield reserved
        finally:
            os.close(reserved)

    @contextmanager
    def _reading(self, key: str) -> Iterator[tuple[int, int, str]]:
        """(descriptor, size, etag) of an object's file."""
        parents, name = split_key(key)
        with _translated(key), self._open_root() as root, tree.open_parents(root, parents) as directory:
            descriptor = tree.open_object(directory, name)
            if descriptor is None:
                raise Missing("there is no such object", key=key)
            try:
                found = os.fstat(descriptor)
                yield descriptor, found.st_size, tree.etag_of(found)
            finally:
                os.close(descriptor)


def _check_conditions(root: int, key: str, if_absent: bool, if_match: str | None) -> None:
    parents, name = split_key(key)
    if not if_absent and if_match is None:
        return
    with tree.open_parents(root, parents) as directory:
        found = tree.find_object(directory, name)
    if if_absent and found is not None:
        raise Conflict("there is such an object already", key=key)
    if if_match is not None and (found is None or tree.etag_of(found[1]) != if_match):
        raise Conflict("it is no longer what it was", key=key)


def _rename(reserved: int, temporary_name: bytes, root: int, key: str) -> int:
    """Give a written file its key; returns the descriptor of the directory, which is to be synced and closed."""
    parents, name = split_key(key)
    with tree.make_parents(root, parents) as directory:
        target = tree.place(directory, name)
        os.rename(temporary_name, target, src_dir_fd=reserved, dst_dir_fd=directory)
        return os.dup(directory)


def _write(descriptor: int, body: Body) -> None:
    if isinstance(body, bytes | bytearray | memoryview):
        _write_all(descriptor, body)
        return
    with open(body, "rb", buffering=0) as source:
        while block := source.read(_COPY_BYTES):
            _write_all(descriptor, block)


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _pread(descriptor: int, offset: int, length: int, key: str) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise Corrupt("the file became shorter while it was read", key=key)
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _sync_directory(directory: int, key: str, *, is_conditional: bool) -> None:
    """Make the change of name durable, and close. When that fails, a conditional write was applied, but may be lost."""
    try:
        os.fsync(directory)
    except OSError as error:
        if is_conditional:
            raise Ambiguous(f"it was written, but could not be made durable: {error.strerror}", key=key) from error
        raise
    finally:
        os.close(directory)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _kind(error, key) from error


def _kind(error: OSError, key: str) -> BoxlinkError:
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return Full(f"no room in the store: {text}", key=key, hint="free space, or raise the quota")
    if error.errno in _REFUSED:
        return Invalid(f"the store refused it: {text}", key=key, hint="check the owner and rights of the directory")
    if error.errno in _OF_ANOTHER_KIND:
        return Invalid(f"the store refused it: {text}", key=key, hint="a store is a directory: name one")
    if error.errno == errno.ENOENT:
        return Missing(f"it is gone: {error.filename!r}", key=key)
    return Unavailable(f"the file system failed: {text}", key=key, hint="see the kernel's log")
