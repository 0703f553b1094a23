"""The first pass of a restore: what of a seq stands on disk already, and what is missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Protocol

from blake3 import blake3

from synclib.core.content_set import ContentSet
from synclib.core.entry import ChunkRef, Entry, Kind, content_id
from synclib.core.manifest import Manifest
from synclib.disk.held import State, boot_id
from synclib.disk.spool import Spool
from synclib.disk.tree import Tree


class Survey(Protocol):
    """What has to be made, in the chain's order; ``need_bytes`` and ``file_count`` are of its files."""

    @property
    def missing(self) -> Iterable[Entry]: ...

    @property
    def need_bytes(self) -> int: ...

    @property
    def file_count(self) -> int: ...

    @property
    def wanted(self) -> ContentSet:
        """The contents of those files, where something stands that may have them."""

    @property
    def is_nothing(self) -> bool:
        """Whether all is as it should be."""

    def label(self) -> None:
        """Give files with the right bytes what else is said of them; one that is not ours to change is made anew."""


class Everything:
    """Where nothing stands yet all is missing: no path is looked at, and none remembered."""

    def __init__(self, entries: Iterable[Entry], manifest: Manifest) -> None:
        self.missing = entries
        self.need_bytes, self.file_count = manifest.plain_bytes, manifest.file_count
        self.is_nothing = False
        self.wanted = ContentSet()

    def label(self) -> None:
        """There is nothing to label."""


class Comparison:
    """Collects, in the chain's order, what has to be made; ``need_bytes`` is the size of those files."""

    def __init__(self, tree: Tree, before: State | None) -> None:
        self._tree, self._before = tree, before
        self.missing: Spool[Entry] = Spool(Entry)
        # Right bytes, but not the right mode or time.
        self.mislabelled: Spool[Entry] = Spool(Entry)
        self.wanted = ContentSet()
        self.need_bytes = 0
        self.file_count = 0

    @property
    def is_nothing(self) -> bool:
        return not self.missing.count and not self.mislabelled.count

    def look(self, entry: Entry) -> None:
        """Decide what one path needs: nothing, a label, or to be made."""
        found = self._tree.lstat(entry)
        if found is not None and self._is_here(entry, found):
            return
        self.missing.add(entry)
        if entry.kind == Kind.FILE:
            self.need_bytes += entry.size
            self.file_count += 1
            if entry.size and self._before is not None:
                self.wanted.add(content_id(entry))

    def _is_here(self, entry: Entry, found: os.stat_result) -> bool:
        mode = found.st_mode
        if entry.kind == Kind.DIRECTORY:
            return stat.S_ISDIR(mode) and stat.S_IMODE(mode) == entry.mode
        if entry.kind == Kind.SYMLINK:
            is_same = stat.S_ISLNK(mode) and found.st_mtime_ns == entry.mtime_ns
            return is_same and self._tree.readlink(entry) == entry.target
        if not stat.S_ISREG(mode) or found.st_size != entry.size:
            return False
        if not self._is_believed(entry, found) and not self._has_content(entry):
            return False
        if stat.S_IMODE(mode) != entry.mode or found.st_mtime_ns != entry.mtime_ns:
            self.mislabelled.add(entry)
        return True

    def _is_believed(self, entry: Entry, found: os.stat_result) -> bool:
        """Whether size and time are enough: only of files that a restore of ours has placed."""
        if found.st_mtime_ns != entry.mtime_ns or self._before is None:
            return False
        restoring, unsynced = self._before.restoring, self._before.unsynced
        if unsynced is not None and unsynced.boot_id != boot_id() and found.st_ctime_ns >= unsynced.since_ns:
            return False
        if restoring is None:
            return self._before.seq > 0
        return restoring.boot_id == boot_id() and found.st_ctime_ns >= restoring.started_at_ns

    def _has_content(self, entry: Entry) -> bool:
        """Whether a local file has an entry's bytes: it is read and hashed."""
        try:
            descriptor = self._tree.open_file(entry)
        except OSError:
            return False
        try:
            return all(blake3(data).digest() == chunk.hash for chunk, data in _read_chunks(descriptor, entry.chunks))
        finally:
            os.close(descriptor)

    def label(self) -> None:
        """Give files with the right bytes their mode and time; one that is not ours to change is made anew."""
        for entry in self.mislabelled:
            try:
                descriptor = self._tree.open_file(entry)
                try:
                    os.fchmod(descriptor, entry.mode)
                    os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
                finally:
                    os.close(descriptor)
            except OSError:
                self.missing.add(entry)


def _read_chunks(descriptor: int, chunks: tuple[ChunkRef, ...]) -> Iterator[tuple[ChunkRef, bytes]]:
    offset = 0
    for chunk in chunks:
        yield chunk, os.pread(descriptor, chunk.plain_bytes, offset)
        offset += chunk.plain_bytes
