"""A reader that goes on where a collector takes its runs and packs away: its seq has others by then.

A compaction or a repacking gives a seq a new chain with the same content (I4), and a collection may then sweep the
former one although nothing of the seq is dropped. Who reads holds no lease for that: it asks for the seq's present
manifest and goes on from where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from synclib.core.entry import Entry
from synclib.core.manifest import Manifest
from synclib.core.names import sort_key
from synclib.core.streaming import Landing, Stretch
from synclib.errors import Missing
from synclib.lazy.chain import Chain, below_bounds
from synclib.lazy.dataset import Dataset
from synclib.lazy.near import Near
from synclib.lazy.view import View

# So many chains in a row that are gone before one answer is here: who reads is slower than those who collect.
_CHAINS_MAX = 8

T = TypeVar("T")


class SteadyView(View):
    """A view of ``manifest``'s seq, opened by ``opened``, and again by it with each newer manifest that is needed.

    Missing, as from any view, for a path that is not there and for a seq that is dropped.
    """

    def __init__(self, dataset: Dataset, manifest: Manifest, opened: Callable[[Manifest], View]) -> None:
        view = opened(manifest)
        super().__init__(manifest, view._chain, view._source)
        self._dataset, self._opened, self._runs = dataset, opened, manifest.runs
        # The former ones may still be read in other threads: all are closed together.
        self._views = [view]
        self._lock = threading.Lock()

    def stat(self, path: bytes) -> Entry:
        return self._asked(lambda: View.stat(self, path))

    def near(self, path: bytes) -> Near | None:
        return self._asked(lambda: View.near(self, path))

    def listdir(self, path: bytes) -> Iterator[Entry]:
        self._check_directory(path)
        start = sort_key(path, b"")
        return self._entries(start, start[:-1] + b"\1")

    def walk(self, path: bytes = b"") -> Iterator[Entry]:
        self._check_directory(path)
        return self._entries(*below_bounds(path)) if path else self._entries(b"", None)

    def fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        self._asked(lambda: self._fill(entry, landings, stretch))

    def close(self) -> None:
        for view in self._views:
            view.close()

    def _asked(self, ask: Callable[[], T]) -> T:
        for _ in range(_CHAINS_MAX):
            chain = self._chain
            try:
                return ask()
            except Missing as error:
                self._renew(chain, error)
        return ask()

    def _entries(self, start: bytes, stop: bytes | None) -> Iterator[Entry]:
        last: Entry | None = None
        tries = 0
        while True:
            chain = self._chain
            seen = last
            try:
                for entry in chain.entries(start if last is None else last.key + b"\0", stop):
                    last = entry
                    yield entry
            except Missing as error:
                tries = 0 if last is not seen else tries + 1
                if tries > _CHAINS_MAX:
                    raise
                self._renew(chain, error)
            else:
                return

    def _fill(self, entry: Entry, landings: list[Landing], stretch: Stretch) -> None:
        try:
            self._source.fill(entry, landings, stretch)
        except Missing:
            # A repacking may have moved chunks: the same ones, by their hashes, to other packs.
            present = self.stat(entry.path)
            places = {chunk.hash: chunk for chunk in present.chunks}
            if all(places.get(landing.chunk.hash) in (None, landing.chunk) for landing in landings):
                raise
            if not all(landing.chunk.hash in places for landing in landings):
                raise
            moved = [msgspec.structs.replace(landing, chunk=places[landing.chunk.hash]) for landing in landings]
            self._source.fill(present, moved, stretch)

    def _renew(self, chain: Chain, error: Missing) -> None:
        """Open the seq's present manifest in the place of ``chain``. ``error`` again where it is not an object that is
        missing, or the manifest is still the same."""
        if not error.key:
            raise error
        with self._lock:
            if self._chain is not chain:
                return
            manifest = self._dataset.manifest_at(self.seq)
            if manifest.runs == self._runs or manifest.digest != self.digest:
                raise error
            view = self._opened(manifest)
            self._views.append(view)
            self._runs = manifest.runs
            self._source = view._source
            self._chain = view._chain
