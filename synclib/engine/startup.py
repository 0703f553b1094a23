"""The start-up of whoever reads a mount: what earlier ones needed is fetched ahead, what it needs is published."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from synclib.core.extent_map import Extent
from synclib.core.likely import LOOKED_AT, likely
from synclib.core.names import sort_key, split_path
from synclib.core.trace import Touch, union
from synclib.disk.atomic import write_atomic
from synclib.disk.start_trace import Found, StartTrace, read_start_trace, write_start_trace
from synclib.engine.host import Host
from synclib.engine.traces import is_trace_wanted, locate, publish_trace, read_traces, resolve
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Extents
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset
from synclib.lazy.run_cache import RunCache
from synclib.lazy.touches import Touches
from synclib.lazy.tree_chain import opened_chain

_LOOK_S = 0.5
_ASKED_AT_ONCE = 16
# A chain up to this comes here whole when a trace is looked up in it; of a longer one only the blocks that are needed.
_FILL_BYTES_MAX = 64 << 20
_PUBLISHED = "traced"


class StartUp:
    """Of one mount of a seq. It is over when it is said to be, by :meth:`end` or by the file ``ready`` (None: there is
    none), or when nothing new was read for a while.

    ``word``: another one where the content is another, or lies in other packs; ``extents``: of that seq. ``cache``: the
    directory of the dataset's blob. ``dataset``: its store need not try again; what fails is left out, for a trace is
    advice. ``is_seen_whole``: nobody served the mount before; else what is noted is not all, and is not kept.
    """

    def __init__(
        self,
        dataset: Dataset,
        host: Host,
        seq: int,
        word: str,
        extents: Extents,
        cache: Path,
        ready: Path | None,
        *,
        is_seen_whole: bool,
    ) -> None:
        self._dataset, self._host, self._cache, self._ready = dataset, host, cache, ready
        self._seq, self._word, self._extents = seq, word, extents
        self._is_seen_whole, self._is_ended = is_seen_whole, False
        self.touches = Touches(host.clock)

    def end(self) -> None:
        """Whoever reads is ready; what was read until now is what that took."""
        self._is_ended = True

    def run(self, on_over: Callable[[], None], ended: threading.Event) -> None:
        """Until it is over or the mount is: then what was read is kept here, and published."""
        while not (self._is_said() or self.touches.is_over()):
            if ended.wait(_LOOK_S):
                return
        on_over()
        touched = self.touches.in_order()
        if self._ready is not None:
            with contextlib.suppress(OSError):
                write_atomic(self._ready, b"")
        if not touched or not self._is_seen_whole:
            return
        with contextlib.suppress(BoxlinkError, OSError):
            own = self._extents_at(touched)
            self._keep(own)
            if not self._is_published():
                self._publish(own)

    def _extents_at(self, touched: list[tuple[int, int]]) -> list[tuple[int, Extent]]:
        """(milliseconds, extent) of (milliseconds, position), in the same order; what is not there is left out."""
        found = {
            extent.position: extent
            for position in sorted(position for _, position in touched)  # a page of the map once
            for extent in self._extents.overlapping(position, position + 1)
        }
        return [(at_ms, found[position]) for at_ms, position in touched if position in found]

    def _keep(self, own: Found) -> None:
        """The next start here needs the same, whether or not there are traces enough of others."""
        kept = read_start_trace(self._cache)
        told = kept.told if kept.word == self._word else ()
        with contextlib.suppress(BoxlinkError):
            write_start_trace(self._cache, StartTrace(self._word, told, own))

    def _is_said(self) -> bool:
        return self._is_ended or (self._ready is not None and self._ready.exists())

    def read_trace(self) -> Iterable[tuple[float, Extent]]:
        """What earlier start-ups needed, as this seq has it, or else what one is likely to need; nothing where that
        cannot be had at once."""
        if self._is_said():
            return []
        kept = read_start_trace(self._cache)
        if kept.word != self._word:
            own = self._still_there(kept.own)
            try:
                touches = union(read_traces(self._dataset))
                told = self._located(touches) if touches else []
                if not touches and not own:
                    return self._likely()
            except BoxlinkError:
                return _seconds(StartTrace(own=own))
            kept = StartTrace(self._word, told, own)
            with contextlib.suppress(BoxlinkError):
                write_start_trace(self._cache, kept)
        return _seconds(kept)

    def _still_there(self, former: Found) -> list[tuple[int, Extent]]:
        """What was read at another seq, or before a repack, as far as this one has it in the same place."""
        with contextlib.suppress(BoxlinkError):
            return [
                (at_ms, here)
                for at_ms, extent in former
                for here in self._extents.overlapping(extent.position, extent.position + 1)
                if (here.position, here.chunk.hash) == (extent.position, extent.chunk.hash)
            ]
        return []

    def _likely(self) -> list[tuple[float, Extent]]:
        runs = self._dataset.manifest_at(self._seq).runs
        # As a tree is served: what one of the two has read the other need not ask for.
        with opened_chain(self._dataset.store, self._dataset.root, runs, self._cache) as chain:
            found = locate(chain, likely(islice(chain.listdir(b""), LOOKED_AT)))
            return [(at_ms / 1000, extent) for at_ms, extent in found]

    def _located(self, touches: list[Touch]) -> list[tuple[int, Extent]]:
        with self._chain(_FILL_BYTES_MAX) as (chain, executor):
            touches.sort(key=lambda touch: sort_key(*split_path(touch.path)))
            share = -(-len(touches) // _ASKED_AT_ONCE)
            groups = [touches[first : first + share] for first in range(0, len(touches), share)]
            found = executor.map(lambda group: list(locate(chain, group)), groups)
            return sorted((item for items in found for item in items), key=lambda item: item[0])

    def _publish(self, own: Found) -> None:
        if is_trace_wanted(self._dataset, self._seq):  # asked first: most nodes need not look for paths
            with self._chain(fill_bytes_max=0) as (chain, _):
                touches = resolve(chain, own)
            # Few are found where the seq was repacked since it was mounted: that tells nobody what a start needs.
            if 2 * len(touches) < len(own):
                return
            publish_trace(self._dataset, self._host, self._seq, touches)
        write_atomic(self._cache / _PUBLISHED, b"%d" % self._seq)

    def _is_published(self) -> bool:
        """Whether this node has published a trace of the seq before."""
        try:
            return int((self._cache / _PUBLISHED).read_bytes()) >= self._seq
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def _chain(self, fill_bytes_max: int) -> Iterator[tuple[Chain, Executor]]:
        """The seq's chain, and threads to ask it side by side. Its runs are brought here whole, which is few requests,
        unless they have more bytes than that."""
        manifest = self._dataset.manifest_at(self._seq)
        runs = RunCache(self._cache.parent / "run", self._dataset.store)
        with runs.in_use(), ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
            if sum(run.object_bytes for run in manifest.runs) <= fill_bytes_max:
                for _ in executor.map(lambda run: runs.fill(self._dataset.root, [run]), manifest.runs):
                    pass
            yield Chain.of(runs, self._dataset.root, manifest.runs), executor


def _seconds(trace: StartTrace) -> list[tuple[float, Extent]]:
    return [(at_ms / 1000, extent) for at_ms, extent in trace.merged()]
