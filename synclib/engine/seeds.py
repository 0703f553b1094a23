"""Bytes that are here already, under another name or in another directory: they are verified, and not fetched.

A change that moves a file takes it away at one path and puts the same bytes at another. Before anything is removed or
replaced, each such file gets a second name among the temporary files; when its new entry's turn comes it is hashed,
labelled and renamed to its place, or copied where its old path still has it. A restore that is killed leaves these
names, and the next one finds them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from blake3 import blake3

from synclib.core.content_set import ContentSet
from synclib.core.entry import ChunkRef, Entry, Kind, content_id
from synclib.disk.spool import Spool
from synclib.disk.tree import Tree, write_all
from synclib.errors import Corrupt, Invalid
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes

_PLACED_KEPT = 4096


class Moved:
    """Files that the change takes away, and whose bytes it puts somewhere else. ``wanted``: contents that are missing.

    ``room_bytes``: what those hold together; they need no further space.
    """

    def __init__(self, tree: Tree, old: Chain, new: Chain, wanted: ContentSet) -> None:
        self._tree = tree
        self._found: Spool[Entry] = Spool(Entry)
        self._contents = ContentSet()
        self.room_bytes = 0
        # Where the latest contents went: others may want the same.
        self._placed: OrderedDict[bytes, Entry] = OrderedDict()
        if not (wanted.count and old.runs):
            return
        for former, entry in changes(old, new):
            if former is None or former.kind != Kind.FILE or not former.size:
                continue
            content = content_id(former)
            is_kept = entry is not None and entry.kind == Kind.FILE and content_id(entry) == content
            if not is_kept and content in wanted and self._is_as_placed(former):
                self._found.add(former)
                self._contents.add(content)
                self.room_bytes += former.size if entry is None else 0

    def _is_as_placed(self, former: Entry) -> bool:
        found = self._tree.lstat(former)
        return (
            found is not None
            and stat.S_ISREG(found.st_mode)
            and (found.st_size, found.st_mtime_ns) == (former.size, former.mtime_ns)
        )

    def __contains__(self, entry: Entry) -> bool:
        """Whether a missing file will (all but surely) be made of one of them."""
        return self._contents.count > 0 and content_id(entry) in self._contents

    def keep(self) -> None:
        """Give each a second name, before anything is removed."""
        for former in self._found:
            # Without it the bytes are fetched.
            with contextlib.suppress(OSError, Corrupt):
                self._tree.link_seed(former)

    @functools.cached_property
    def _has_seeds(self) -> bool:
        """Whether there is anything to place, by :meth:`keep` or of a killed restore. Where nothing is, as in a first
        restore, a look for each file is a call each for nothing."""
        return self._tree.has_seeds()

    def place(self, entry: Entry) -> bool:
        """Put a file with these bytes at an entry's path; False when there is none here."""
        if not self._has_seeds:
            return False
        content = content_id(entry)
        descriptor, name = self._open(content)
        if descriptor is None:
            return False
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
                return False
            if name and status.st_nlink == 1:
                if not has_chunks(descriptor, entry.chunks):
                    return False
                self._tree.finish_file(name, descriptor, entry)
            elif not copy_whole(self._tree, descriptor, entry):
                return False
        finally:
            os.close(descriptor)
        self._placed[content] = entry
        if len(self._placed) > _PLACED_KEPT:
            self._placed.popitem(last=False)
        return True

    def _open(self, content: bytes) -> tuple[int | None, bytes]:
        """A descriptor of a file that should have these bytes, with its name if it is one that we gave it."""
        found = self._tree.open_seed(content)
        if found is not None:
            return found
        if (placed := self._placed.get(content)) is not None:
            with contextlib.suppress(OSError, Corrupt):
                return self._tree.open_file(placed), b""
        return None, b""


class SeedTrees:
    """Other directories that may hold the same files at the same paths."""

    def __init__(self, tops: tuple[bytes, ...]) -> None:
        self._trees = [Tree(top) for top in tops]

    def __bool__(self) -> bool:
        return bool(self._trees)

    def close(self) -> None:
        for tree in self._trees:
            tree.close()

    def place(self, tree: Tree, entry: Entry) -> bool:
        """Make a file in ``tree`` if one of the directories has all of it; one of several chunks only as a clone, for
        :meth:`copy_chunks` copies also what is not all of it."""
        is_one = len(entry.chunks) == 1
        return any((copy_whole if is_one else clone_whole)(tree, found, entry) for found in self._open(entry))

    def copy_chunks(self, entry: Entry, lacking: tuple[ChunkRef, ...], target: int) -> tuple[ChunkRef, ...]:
        """Copy those of the lacking chunks that stand at the same place of the same file; returns the others."""
        for descriptor in self._open(entry):
            wanted = {chunk.hash for chunk in lacking}
            left: list[ChunkRef] = []
            offset = 0
            for chunk in entry.chunks:
                if chunk.hash in wanted:
                    data = os.pread(descriptor, chunk.plain_bytes, offset)
                    if blake3(data).digest() == chunk.hash:
                        write_all(target, data, offset)
                    else:
                        left.append(chunk)
                offset += chunk.plain_bytes
            lacking = tuple(left)
        return lacking

    def _open(self, entry: Entry) -> Iterator[int]:
        """Descriptors of the files of an entry's size at its path."""
        for tree in self._trees:
            try:
                descriptor = tree.open_file(entry)
            except (OSError, Corrupt):
                continue
            try:
                if os.fstat(descriptor).st_size == entry.size:
                    yield descriptor
            finally:
                os.close(descriptor)


def split_seeds(seeds: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """(trees, roots of datasets of a ``file://`` store): the latter have packs. Invalid for what is no directory."""
    trees: list[bytes] = []
    roots: list[bytes] = []
    for seed in seeds:
        if not os.path.isdir(seed):
            shown = os.fsdecode(seed)
            raise Invalid(f"{shown} is no directory", hint="a seed is a restored directory or a dataset's in a store")
        has_packs = os.path.isdir(os.path.join(seed, b"pack")) and os.path.isfile(os.path.join(seed, b"head"))
        (roots if has_packs else trees).append(seed)
    return tuple(trees), tuple(roots)


def has_chunks(descriptor: int, chunks: tuple[ChunkRef, ...]) -> bool:
    """Whether a file begins with these chunks: it is read and hashed."""
    try:
        for _ in _verified(descriptor, chunks):
            pass
    except Corrupt:
        return False
    return True


def copy_whole(tree: Tree, source: int, entry: Entry) -> bool:
    """Make a file of what an open one holds, if that is what the entry wants: as a clone that shares its blocks where
    the file system can do that, else by copying. Verified either way."""
    try:
        if not clone_whole(tree, source, entry):
            tree.write_file(entry, _verified(source, entry.chunks))
    except Corrupt:
        return False
    return True


def clone_whole(tree: Tree, source: int, entry: Entry) -> bool:
    return tree.clone_file(entry, source, lambda clone: has_chunks(clone, entry.chunks))


def _verified(descriptor: int, chunks: tuple[ChunkRef, ...]) -> Iterator[bytes]:
    offset = 0
    for chunk in chunks:
        data = os.pread(descriptor, chunk.plain_bytes, offset)
        if blake3(data).digest() != chunk.hash:
            raise Corrupt("a seed does not have these bytes")
        yield data
        offset += chunk.plain_bytes
