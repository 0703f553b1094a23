"""Reading the logs that nodes have sent up (engine/logship.py)."""

from __future__ import annotations

from collections.abc import Iterator

from synclib.core import names
from synclib.engine.logship import read_segment
from synclib.errors import BoxlinkError, Corrupt, Invalid, Missing
from synclib.store.base import Store, in_spite_of_strangers


class LogReader:
    """Reads what nodes have sent, each segment once. ``failed``: what could not be read, and is passed over: one node's
    damage hides no other's lines."""

    def __init__(self, store: Store, node: str = "", file: str = "") -> None:
        self._store, self._prefix = store, names.log_prefix(node, file)
        self._done: dict[str, str] = {}  # the last key of each stream
        self._passed_over: set[str] = set()
        self.failed: list[BoxlinkError] = []

    def read(self) -> Iterator[tuple[str, str, str, bytes]]:
        """(key, node, file, bytes) of the segments that have come since; each stream in order."""
        for info in in_spite_of_strangers(self._store.list(self._prefix), self._strange):
            stream, _, _ = info.key.rpartition("/")
            if info.key <= self._done.get(stream, "") or info.key in self._passed_over:
                continue
            try:
                node, file, _ = names.parse_log_key(info.key)
                data = read_segment(self._store, info.key)
            except Missing:
                continue  # somebody has just taken it away
            except (Corrupt, Invalid) as error:
                error.key = info.key
                self._passed_over.add(info.key)
                self.failed.append(error)
                continue
            self._done[stream] = info.key
            yield info.key, node, file, data

    def _strange(self, text: str) -> None:
        if text not in self._passed_over:
            self._passed_over.add(text)
            self.failed.append(Corrupt(text))
