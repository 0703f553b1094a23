"""Directories whose mode is in the way of what a restore writes into them: opened now, given their mode at the end."""

from __future__ import annotations

from synclib.core.entry import Entry, Kind
from synclib.core.names import split_path
from synclib.disk.tree import Tree


class Opened:
    """The modes that directories of one tree get when all else is done."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._modes: dict[bytes, Entry] = {}
        self._latest = b""

    def open_up(self, directory: bytes) -> None:
        """Before something changes in a directory: one that is closed to writing gets its mode back at the end."""
        if directory == self._latest:
            return
        self._latest = directory
        mode = self._tree.open_up(directory)
        if mode is not None:
            self._modes.setdefault(directory, Entry(*split_path(directory), Kind.DIRECTORY, mode))

    def later(self, entry: Entry) -> None:
        """A directory gets this mode at the end."""
        self._modes[entry.path] = entry

    def forget(self, path: bytes) -> None:
        """A directory has its mode already, or is gone."""
        self._modes.pop(path, None)

    def modes(self) -> list[Entry]:
        """What is to be set, children before their parents."""
        return [entry for _, entry in sorted(self._modes.items(), reverse=True)]
