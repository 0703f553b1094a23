"""The write lock of a file store, the stamps that make its etags, and its temporary files.

A *stamp* is the modification time, in nanoseconds, that an object is given before it gets its name. Stamps rise
strictly within a store: the last one is kept in the lock file, and each is now or, when that is not later, the last
one plus the least step that the file system can hold. So an etag made of stamp and size never comes twice, however
coarse the kernel's clock is and whichever inode is reused.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from synclib.clock import Clock, Entropy
from synclib.errors import Unavailable, Unsupported
from synclib.store.file_names import LOCK_FILE, RESERVED

LOCK_TIMEOUT_S = 30.0
LEFTOVER_AGE_NS = 3600 * 10**9
_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# What file systems keep of a time: nanoseconds, 100 ns, microseconds, 10 ms, seconds, two seconds.
_STEPS_NS = (1, 100, 1_000, 10_000_000, 1_000_000_000, 2_000_000_000)


class WriteLock:
    """Excludes all other writers of a store: threads by a mutex, processes by flock on a descriptor of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._threads = threading.Lock()

    @contextmanager
    def hold(self, reserved: int) -> Iterator[int]:
        """Hold the lock whose file is in the directory ``reserved``; yields that file's descriptor.

        Unavailable when another holds it for longer than LOCK_TIMEOUT_S.
        """
        if not self._threads.acquire(timeout=LOCK_TIMEOUT_S):
            raise _busy()
        try:
            descriptor = os.open(LOCK_FILE, _CREATE, 0o666, dir_fd=reserved)
            try:
                self._wait_for_processes(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)
        finally:
            self._threads.release()

    def _wait_for_processes(self, descriptor: int) -> None:
        deadline = self._clock.monotonic() + LOCK_TIMEOUT_S
        pause = 0.0005
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if self._clock.monotonic() > deadline:
                    raise _busy() from None
            self._clock.sleep(pause)
            pause = min(2 * pause, 0.01)


def stamp(temporary: int, lock: int, now_ns: int) -> int:
    """Give the open file ``temporary`` a modification time that no object of this store ever had, and return it."""
    last = int.from_bytes(os.pread(lock, 8, 0), "little", signed=True)
    for step in _STEPS_NS:
        wanted = max(now_ns, last + step)
        os.utime(temporary, ns=(wanted, wanted))
        given = os.fstat(temporary).st_mtime_ns
        if given > last:
            os.pwrite(lock, given.to_bytes(8, "little", signed=True), 0)
            return given
    raise Unsupported("this file system keeps no modification times", hint="keep the store on a local file system")


@contextmanager
def temporary_file(reserved: int, entropy: Entropy) -> Iterator[tuple[int, bytes]]:
    """A new file in ``reserved``, locked while in use; (descriptor, name). Removed unless it was renamed."""
    name = entropy.token(16).hex().encode()
    descriptor = os.open(name, _CREATE | os.O_EXCL, 0o666, dir_fd=reserved)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor, name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=reserved)
        os.close(descriptor)


def clean_leftovers(reserved: int, now_ns: int) -> int:
    """Remove what killed writers left: old files that nobody holds. Returns how many."""
    removed = 0
    with os.scandir(reserved) as found:
        names = [os.fsencode(entry.name) for entry in found]
    for name in names:
        if name != LOCK_FILE:
            with suppress(FileNotFoundError, BlockingIOError):
                removed += _clean(reserved, name, now_ns)
    return removed


def _clean(reserved: int, name: bytes, now_ns: int) -> bool:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=reserved)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or now_ns - found.st_mtime_ns < LEFTOVER_AGE_NS:
            return False
        # A writer holds its file until it has its name, so this one has no writer any more.
        os.unlink(name, dir_fd=reserved)
        return True
    finally:
        os.close(descriptor)


def open_reserved(root: int) -> int:
    """The reserved directory's descriptor; made when it is not there."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(RESERVED, flags, dir_fd=root)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(RESERVED, 0o777, dir_fd=root)
        return os.open(RESERVED, flags, dir_fd=root)


def _busy() -> Unavailable:
    return Unavailable(
        f"another writer has held the store's lock for {LOCK_TIMEOUT_S:.0f} s",
        hint="find the stopped process that has %tmp/lock open",
    )
