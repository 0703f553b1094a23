"""Which seqs of a dataset are mounted from one cache, by whatever process: what no other has is evicted first.

mounted/<pid>.json       what a worker serves; it has flock(2) on the file while it lives
mounted/<pid>-<seq>.json what a reader in a process reads
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from synclib.core.entry import ADDRESS_UNIT
from synclib.disk.evictor import WantedStarts
from synclib.disk.faults import is_of_the_world
from synclib.lazy.blob import Extents


class MountedSeqs:
    """Of the cache in ``directory``; ``open_map`` opens the map that a worker's file names: None where there is none,
    and all that is here may be wanted. Used by one thread."""

    def __init__(self, directory: Path, open_map: Callable[[bytes], AbstractContextManager[Extents | None]]) -> None:
        self._directory, self._open_map = directory / "mounted", open_map
        self._maps: list[Extents | None] = []
        self._open = contextlib.ExitStack()
        self._word = ""

    def close(self) -> None:
        self._open.close()

    def look(self) -> tuple[str, WantedStarts]:
        """A word for what is mounted now, and what tells where its chunks begin. Any BoxlinkError where a map is not
        what it must be."""
        standing = sorted(set(self._standing()))
        word = b"\n".join(standing).decode(errors="replace")
        if word != self._word:
            self._open.close()
            self._open, self._maps, self._word = contextlib.ExitStack(), [], ""
            self._maps = [self._open.enter_context(self._open_map(data)) for data in standing]
            self._word = word
        return word, self._starts

    def _starts(self, first: int, stop: int) -> set[int]:
        maps = [reader for reader in self._maps if reader is not None]
        if len(maps) < len(self._maps):
            return set(range(first, stop))
        return {
            extent.position // ADDRESS_UNIT
            for reader in maps
            for extent in reader.overlapping(first * ADDRESS_UNIT, stop * ADDRESS_UNIT)
        }

    def _standing(self) -> Iterator[bytes]:
        for path in self._directory.glob("*.json"):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield file.read()
                else:
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(directory: Path, data: bytes, mark: str = "") -> Iterator[None]:
    """Let others know what this process serves from the cache in ``directory``. ``mark``: tells what one process serves
    at a time apart. Where the disk is full, or fails, it goes without: what it has may be evicted first."""
    path = directory / "mounted" / f"{os.getpid()}{mark}.json"
    descriptor = None
    try:
        descriptor = _locked(path)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)
    except OSError as error:
        if not is_of_the_world(error):
            raise
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # whoever looks takes it away
                path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever looked before it was locked has taken it away.
        try:
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
