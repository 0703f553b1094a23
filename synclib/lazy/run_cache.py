"""Runs on the local disk, in front of a store: an unchanged chain costs no request.

Runs are immutable and verified by whoever decodes them, so a copy needs no record of its own; one that turns out to be
damaged is dropped, and the reader tries again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from synclib.core.manifest import RunRef
from synclib.disk.regular import open_regular
from synclib.lazy.run_reader import Request
from synclib.store.base import Buffer, Store

_PIECE_BYTES = 8 << 20
_LOCK = "lock"


class RunCache:
    """Whole copies of runs in a directory, by the last component of their key.

    ``own``: a directory with further runs, some of which the store does not have; only damaged ones are removed.
    """

    is_far = False

    def __init__(self, directory: Path, store: Store, own: Path | None = None) -> None:
        self._directory = directory
        self._store = store
        self._own = own
        self._lock: int | None = None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For a cache that several processes share: while one uses it, no other prunes it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            yield
        finally:
            os.close(self._lock)
            self._lock = None

    def path(self, key: str) -> Path:
        """Where a run's copy is, or would be."""
        name = key.rpartition("/")[2]
        if self._own is not None and (self._own / name).exists():
            return self._own / name
        return self._directory / name

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        """From the local copy if there is one, else from the store."""
        try:
            with open(open_regular(self.path(key)), "rb", buffering=0) as file:
                found: list[Buffer] = [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]
        except FileNotFoundError:
            return self._store.get_ranges(key, ranges)
        if any(len(data) != stop - start for data, (start, stop) in zip(found, ranges, strict=True)):
            self.drop(key)
            return self._store.get_ranges(key, ranges)
        return found

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        return [self.get_ranges(key, ranges) for key, ranges in requests]

    def fill(self, root: str, runs: Iterable[RunRef]) -> None:
        """Make sure that whole copies of these runs are here."""
        for ref in runs:
            key = ref.key(root)
            try:
                found = os.stat(self.path(key))
                if found.st_size == ref.object_bytes and stat.S_ISREG(found.st_mode):
                    continue
            except FileNotFoundError:
                pass
            self.keep(key, self._pieces(key, ref.object_bytes))

    def _pieces(self, key: str, object_bytes: int) -> Iterator[Buffer]:
        for start in range(0, object_bytes, _PIECE_BYTES):
            yield from self._store.get_ranges(key, [(start, min(start + _PIECE_BYTES, object_bytes))])

    def keep(self, key: str, pieces: Iterable[Buffer]) -> Path:
        """Keep a run's bytes; returns the file that holds them."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".run.", dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(pieces)
            os.rename(temporary, self.path(key))
        except BaseException:
            # An interrupt may come just after the rename.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        return self.path(key)

    def drop(self, key: str) -> bool:
        """Forget a damaged copy; False when there was none. One of our own that the store does not have is lost so, but
        nobody could read it."""
        name = key.rpartition("/")[2]
        is_dropped = False
        for directory in (self._directory, self._own):
            if directory is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / name)
                    is_dropped = True
        return is_dropped

    def prune(self, runs: Iterable[RunRef]) -> None:
        """Remove copies of runs that are no longer wanted, and what a killed writer left; not while others use it."""
        if self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        wanted = {_LOCK, *(ref.file_name for ref in runs)}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as listing:
            for item in listing:
                if item.name not in wanted and item.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(item.path)
