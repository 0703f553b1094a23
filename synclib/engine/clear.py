"""What a restore removes: what the chain had put here and has no longer, and, if asked, whatever is not its own."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from synclib.core.delta import join
from synclib.core.entry import Entry, Kind
from synclib.disk.scan import scan
from synclib.disk.tree import Tree
from synclib.engine.opened import Opened
from synclib.lazy.chain import Chain
from synclib.lazy.changes import changes

# So many paths a dry run names; the others it counts.
PATHS_TOLD_MAX = 1000


@dataclass
class Cleared:
    """``kept``: paths that the chain removed but that stay, for somebody had changed or published them here.
    ``is_dry_run``: what would be removed is counted, and stays; directories count also where a stranger's files would
    keep them. ``would_delete``: the first of those paths."""

    deleted: int = 0
    kept: list[bytes] = field(default_factory=list)
    is_dry_run: bool = False
    would_delete: list[bytes] = field(default_factory=list)


def remove_old(tree: Tree, opened: Opened, old: Chain, new: Chain, cleared: Cleared) -> None:
    """Remove what ``old`` has and ``new`` has not; what somebody changed since stays, and is named."""
    directories: list[Entry] = []
    for former, entry in changes(old, new) if old.runs else ():
        if former is None:
            continue
        if former.kind != Kind.DIRECTORY:
            if entry is None:
                _remove_file(tree, opened, former, cleared)
        elif entry is None or entry.kind != Kind.DIRECTORY:
            directories.append(former)
    for former in reversed(directories):
        _remove(tree, opened, former, cleared)
    tree.forget()


def _remove(tree: Tree, opened: Opened, entry: Entry, cleared: Cleared) -> bool:
    """Remove what stands at a path; False when it stays, a directory that holds other things."""
    if cleared.is_dry_run:
        cleared.deleted += 1
        if len(cleared.would_delete) < PATHS_TOLD_MAX:
            cleared.would_delete.append(entry.path)
        return True
    opened.open_up(entry.directory)
    if not tree.remove(entry):
        return False
    opened.forget(entry.path)
    cleared.deleted += 1
    return True


def _remove_file(tree: Tree, opened: Opened, former: Entry, cleared: Cleared) -> None:
    found = tree.lstat(former)
    if found is None:
        return
    is_same = found.st_mtime_ns == former.mtime_ns
    if former.kind == Kind.FILE:
        is_same = is_same and stat.S_ISREG(found.st_mode) and found.st_size == former.size
    else:
        is_same = is_same and stat.S_ISLNK(found.st_mode)
    if not is_same or not _remove(tree, opened, former, cleared):
        cleared.kept.append(former.path)


def note_published(tree: Tree, published: Chain, new: Chain, cleared: Cleared) -> None:
    """Name what was published from here and the dataset no longer has: nobody put it here but its owner, so it stays,
    and a publish would bring it back."""
    for former, entry in changes(published, new) if published.runs else ():
        if former is not None and entry is None and former.kind != Kind.DIRECTORY and tree.lstat(former) is not None:
            cleared.kept.append(former.path)
    tree.forget()


def remove_extra(tree: Tree, opened: Opened, prefix: bytes, new: Chain, cleared: Cleared) -> None:
    """Remove whatever below ``prefix`` the dataset does not have, markers and state apart."""
    top = os.path.join(tree.top, prefix) if prefix else tree.top
    if not os.path.isdir(top):
        return
    directories: list[Entry] = []
    entries = new.below(prefix, with_hashes=False)
    for entry, found in join(entries, scan(top, prefix), lambda item: item.key, lambda item: item.key):
        if entry is not None or found is None or not found.name:
            continue
        extra = Entry(found.directory, found.name, found.kind)
        if found.kind == Kind.DIRECTORY:
            directories.append(extra)
        else:
            _remove(tree, opened, extra, cleared)
    for extra in reversed(directories):
        _remove(tree, opened, extra, cleared)
    tree.forget()
