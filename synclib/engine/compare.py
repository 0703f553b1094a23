"""The first pass of a restore: what of a seq stands on disk already, and what is missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Protocol

from blake3 import blake3

from synclib.core.content_set import ContentSet
from synclib.core.entry import ChunkRef, Entry, Kind, content_id, group_of, link_key
from synclib.core.manifest import Manifest
from synclib.core.zeros import is_hole
from synclib.disk.held import State, boot_id
from synclib.disk.spool import Spool
from synclib.disk.tree import Tree
from synclib.engine.links import Links


class Survey(Protocol):
    """What has to be made, in the chain's order; ``need_bytes`` and ``file_count`` are of its files."""

    @property
    def missing(self) -> Iterable[Entry]: ...

    @property
    def mislabelled(self) -> Iterable[Entry]:
        """Right bytes, but not the right mode or time."""

    @property
    def need_bytes(self) -> int: ...

    @property
    def file_count(self) -> int: ...

    @property
    def wanted(self) -> ContentSet:
        """The contents of those files, where something stands that may have them."""

    @property
    def links(self) -> Links:
        """Members of hard-link groups that are to be linked to another member."""

    @property
    def is_nothing(self) -> bool:
        """Whether all is as it should be."""

    def label(self) -> None:
        """Give files with the right bytes what else is said of them; one that is not ours to change is made anew."""


class Everything:
    """Where nothing stands yet all is missing: no path is looked at, and none remembered."""

    def __init__(self, entries: Iterable[Entry], manifest: Manifest) -> None:
        self.links = Links()
        self.missing = (entry for entry in entries if not self._is_linked(entry))
        self.mislabelled: tuple[Entry, ...] = ()
        self.need_bytes, self.file_count = manifest.plain_bytes, manifest.file_count
        self.is_nothing = False
        self.wanted = ContentSet()

    def _is_linked(self, entry: Entry) -> bool:
        group = link_key(entry)
        return bool(group) and self.links.is_linked(entry, group, None)

    def label(self) -> None:
        """There is nothing to label."""


class Comparison:
    """Collects, in the chain's order, what has to be made; ``need_bytes`` is the size of those files."""

    def __init__(self, tree: Tree, before: State | None, doubtful: ContentSet) -> None:
        """``doubtful``: of which files that we have placed size and time say nothing (:func:`noting_doubtful`)."""
        self._tree, self._before, self._doubtful = tree, before, doubtful
        self.missing: Spool[Entry] = Spool(Entry)
        self.mislabelled: Spool[Entry] = Spool(Entry)
        self.wanted = ContentSet()
        self.links = Links()
        self.need_bytes = 0
        self.file_count = 0

    @property
    def is_nothing(self) -> bool:
        return not (self.missing.count or self.mislabelled.count or self.links.missing.count)

    def look(self, entry: Entry) -> None:
        """Decide what one path needs: nothing, a label, or to be made."""
        found = self._tree.lstat(entry)
        is_here = found is not None and self._is_here(entry, found)
        if entry.kind == Kind.FILE:
            group = link_key(entry)
            if group and self.links.is_linked(entry, group, found if is_here else None):
                return
            # Two entries that are no group may not be one file.
            is_here = is_here and self.links.is_own(group or entry.path, found)
        if is_here:
            assert found is not None
            if entry.kind == Kind.FILE and not self._is_labelled(entry, found):
                self.mislabelled.add(entry)
            return
        self.missing.add(entry)
        if entry.kind == Kind.FILE:
            self.need_bytes += sum(chunk.plain_bytes for chunk in entry.chunks if not is_hole(chunk))
            self.file_count += 1
            if entry.size and self._before is not None:
                self.wanted.add(content_id(entry))

    def _is_here(self, entry: Entry, found: os.stat_result) -> bool:
        mode = found.st_mode
        if entry.kind == Kind.DIRECTORY:
            is_same = stat.S_ISDIR(mode) and stat.S_IMODE(mode) == entry.mode
            return is_same and self._tree.has_extras(entry, found)
        if entry.kind == Kind.SYMLINK:
            is_same = stat.S_ISLNK(mode) and found.st_mtime_ns == entry.mtime_ns
            return is_same and self._tree.readlink(entry) == entry.target and self._tree.has_extras(entry, found)
        if not stat.S_ISREG(mode) or found.st_size != entry.size:
            return False
        if found.st_nlink > 1 and not group_of(entry.extra) and not self._is_labelled(entry, found):
            # What is said of it would be said of a stranger's file too: it is made anew.
            return False
        return self._is_believed(entry, found) or self._has_content(entry)

    def _is_labelled(self, entry: Entry, found: os.stat_result) -> bool:
        is_same = stat.S_IMODE(found.st_mode) == entry.mode and found.st_mtime_ns == entry.mtime_ns
        return is_same and self._tree.has_extras(entry, found)

    def _is_believed(self, entry: Entry, found: os.stat_result) -> bool:
        """Whether size and time are enough: only of files that a restore of ours has placed."""
        if found.st_mtime_ns != entry.mtime_ns or self._before is None:
            return False
        if self._doubtful.count and _path_id(entry) in self._doubtful:
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
                    self._tree.label(descriptor, entry)
                finally:
                    os.close(descriptor)
            except OSError:
                self.missing.add(entry)


def noting_doubtful(
    changed: Iterable[tuple[Entry | None, Entry | None]], doubtful: ContentSet
) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Changes as they came; files of which both chains say the same size and time, but other bytes, are noted."""
    for former, entry in changed:
        if (
            former is not None
            and entry is not None
            and former.kind == entry.kind == Kind.FILE
            and (former.size, former.mtime_ns) == (entry.size, entry.mtime_ns)
            and content_id(former) != content_id(entry)
        ):
            doubtful.add(_path_id(entry))
        yield former, entry


def _path_id(entry: Entry) -> bytes:
    return blake3(entry.path).digest()


def _read_chunks(descriptor: int, chunks: tuple[ChunkRef, ...]) -> Iterator[tuple[ChunkRef, bytes]]:
    offset = 0
    for chunk in chunks:
        yield chunk, os.pread(descriptor, chunk.plain_bytes, offset)
        offset += chunk.plain_bytes
