"""Directories as plain values, and what a publish makes of three of them (docs/semantics.md)."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from synclib.core.chunker import WINDOW_BYTES, cut
from synclib.core.entry import ChunkRef, Codec, Entry, Kind
from synclib.core.names import is_reserved, split_path
from synclib.core.treehash import TreeHash


class Thing(NamedTuple):
    """What is at one path. ``data``: a file's bytes or a link's target; ``mtime_ns`` is 0 for directories."""

    kind: Kind
    data: bytes = b""
    mode: int = 0o755
    mtime_ns: int = 0


Tree = dict[bytes, Thing]
NEW_DIRECTORY = Thing(Kind.DIRECTORY)


def parents(path: bytes) -> list[bytes]:
    """The directories that a path lies in, the outermost first; not the root."""
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]


def read_tree(top: Path) -> Tree:
    """What stands in a directory, markers and state apart."""
    found: Tree = {}
    base = os.fsencode(top)
    pending = [b""]
    while pending:
        directory = pending.pop()
        for item in os.scandir(os.path.join(base, directory) if directory else base):
            if is_reserved(directory, item.name):
                continue
            path = directory + b"/" + item.name if directory else item.name
            status = item.stat(follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode):
                found[path] = Thing(Kind.DIRECTORY, mode=mode)
                pending.append(path)
            elif stat.S_ISLNK(status.st_mode):
                found[path] = Thing(Kind.SYMLINK, os.readlink(item.path), 0o777, status.st_mtime_ns)
            else:
                data = Path(os.fsdecode(item.path)).read_bytes()
                found[path] = Thing(Kind.FILE, data, mode, status.st_mtime_ns)
    return found


def write_tree(top: Path, tree: Tree) -> None:
    """Make a directory hold exactly ``tree``; what is right already is not touched."""
    base = os.fsencode(top)
    there = read_tree(top)
    for path in sorted(there, reverse=True):
        if path not in tree or tree[path].kind != there[path].kind:
            full = os.path.join(base, path)
            if there[path].kind == Kind.DIRECTORY:
                os.rmdir(full)
            else:
                os.unlink(full)
            del there[path]
    for path, thing in sorted(tree.items()):
        if there.get(path) != thing:
            _put(os.path.join(base, path), thing)


def _put(full: bytes, thing: Thing) -> None:
    if thing.kind == Kind.DIRECTORY:
        os.makedirs(full, exist_ok=True)
        os.chmod(full, thing.mode)
        return
    if thing.kind == Kind.SYMLINK:
        if os.path.lexists(full):
            os.unlink(full)
        os.symlink(thing.data, full)
    else:
        with open(full, "wb") as file:
            file.write(thing.data)
        os.chmod(full, thing.mode)
    os.utime(full, ns=(thing.mtime_ns, thing.mtime_ns), follow_symlinks=False)


def merge(base: Tree, mine: Tree, theirs: Tree) -> Tree:
    """What changed between base and mine, laid on theirs; the result stays a tree."""
    changed = {path for path in {*base, *mine} if base.get(path) != mine.get(path)}
    result = dict(theirs)
    for path in changed:
        if path in mine:
            result[path] = mine[path]
        else:
            result.pop(path, None)
    # What others put below a path that this publish makes no directory of, goes.
    leaves = {path for path in changed if path in mine and mine[path].kind != Kind.DIRECTORY}
    result = {path: thing for path, thing in result.items() if leaves.isdisjoint(parents(path))}
    # What stays or comes needs its directories: as others have them, or new ones.
    for path in list(result):
        for parent in parents(path):
            if parent not in result or result[parent].kind != Kind.DIRECTORY:
                other = theirs.get(parent)
                is_kept = other is not None and other.kind == Kind.DIRECTORY
                result[parent] = other if other is not None and is_kept else NEW_DIRECTORY
    return result


class _Bytes:
    """Bytes for the chunker; of holes it knows nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, view: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def zeros_from(self, offset: int) -> int:
        return 0


def leading_to(tree: Tree, prefix: bytes) -> Tree:
    """What a tree has of the directories that lead to a folder, itself among them."""
    above = [*parents(prefix), prefix] if prefix else []
    return {path: tree[path] for path in above if path in tree}


def with_directories(folder: Tree, head: Tree, base: Tree, prefix: bytes) -> Tree:
    """A folder's content with the directories that lead to it, where the head has none and the base not these."""
    above = [*parents(prefix), prefix] if prefix else []
    lacking = [path for path in above if path not in head or head[path].kind != Kind.DIRECTORY]
    return {**{path: NEW_DIRECTORY for path in lacking if base.get(path) != NEW_DIRECTORY}, **folder}


@functools.lru_cache(1 << 12)
def entry_of(path: bytes, thing: Thing) -> Entry:
    """The entry of a path as far as a digest sees it: places of chunks are invented."""
    if thing.kind != Kind.FILE:
        return Entry(*split_path(path), thing.kind, thing.mode, thing.mtime_ns, target=thing.data)
    chunks = tuple(
        ChunkRef(blake3(piece).digest(), bytes(16), 0, len(piece), len(piece), Codec.RAW)
        for batch in cut(_Bytes(thing.data), memoryview(bytearray(WINDOW_BYTES)))
        for piece, count in batch
        for _ in range(count)
    )
    return Entry(*split_path(path), Kind.FILE, thing.mode, thing.mtime_ns, len(thing.data), chunks)


def digest_of(tree: Tree) -> str:
    """The digest of a tree, from its bytes alone."""
    total = TreeHash()
    for path, thing in tree.items():
        total.add(entry_of(path, thing))
    return total.hexdigest()


def difference(expected: Tree, found: Tree) -> str:
    """The paths at which two trees differ, for people."""
    lines = []
    for path in sorted({*expected, *found}):
        if expected.get(path) != found.get(path):
            lines.append(f"  {path!r}: expected {_shown(expected.get(path))}, found {_shown(found.get(path))}")
    return "\n".join(lines)


def _shown(thing: Thing | None) -> str:
    if thing is None:
        return "nothing"
    data = thing.data if len(thing.data) <= 20 else thing.data[:20] + b"..."
    return f"{thing.kind.name} {data!r} ({len(thing.data)}) {thing.mode:o} {thing.mtime_ns}"
