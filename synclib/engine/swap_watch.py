"""What an operator wishes for the volume that a node stands on (core/swap.py), as words in its ``synch.active``."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from synclib.core import names
from synclib.core.swap import WISH_BYTES_MAX, Wish, parse_wish
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.engine.host import Host
from synclib.errors import Corrupt, Invalid, Missing
from synclib.store.base import Store

_FILE = "swap.json"


class SwapWatch:
    """``wish``: the one that was taken on last. A wish is taken on when it is new, and once more at each
    start: then whoever started this machine may have put older words into ``synch.active``."""

    def __init__(self, data: Path, store: Store, host: Host, poll_s: float) -> None:
        self._data, self._store, self._host, self._poll_s = data, store, host, poll_s
        self._path = data / names.STATE_DIRECTORY / _FILE
        self.wish = self._noted()
        self._etag: str | None = None
        self._due = float("-inf")
        self._is_first = True

    def may_go_back(self, dataset: str) -> bool:
        """Whether the operator may still want a dataset's former volume again."""
        wish = self.wish
        return wish is not None and wish.dataset == dataset and not wish.is_kept

    def round(self, datasets: Collection[str]) -> None:
        """Look, if it is time; ``datasets``: those that stand here. Any BoxlinkError: the next look may find out."""
        now = self._host.clock.monotonic()
        if now < self._due:
            return
        self._due = now + self._poll_s
        key = names.swap_key(self._host.node)
        try:
            found = self._store.get(key, size_max=WISH_BYTES_MAX, if_none_match=self._etag)
        except (Missing, Invalid):
            # S3 answers 403 where nothing is, to those who may not list.
            return
        if found is None:
            return
        wish = parse_wish(found.data, key)
        if wish.dataset in datasets:
            self._take(wish)
        self._etag = found.etag

    def _take(self, wish: Wish) -> None:
        """The words first: who is killed in between writes them once more."""
        if self._is_first or self.wish is None or wish.id != self.wish.id:
            with disk_errors():
                write_atomic(self._data / wish.dataset / names.ACTIVE, f"{wish.words}\n".encode())
        with disk_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, wish.model_dump_json().encode())
        self._is_first = False
        self.wish = wish

    def _noted(self) -> Wish | None:
        try:
            with self._path.open("rb") as file:
                return parse_wish(file.read(WISH_BYTES_MAX), os.fspath(self._path))
        except (OSError, Corrupt):
            return None
