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
from synclib.core.trace import union
from synclib.disk.atomic import write_atomic
from synclib.engine.host import Host
from synclib.engine.traces import is_trace_wanted, locate, publish_trace, read_traces, resolve
from synclib.errors import BoxlinkError
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
    """Of one mount of a seq. It is over when the file ``ready`` (None: there is none) is there, or when nothing new was
    read for a while.

    ``cache``: the directory of the dataset's blob. ``dataset``: its store need not try again; what fails is left out,
    for a trace is advice. ``is_seen_whole``: nobody served the mount before; else what is noted is not all, and is
    not published.
    """

    def __init__(
        self, dataset: Dataset, host: Host, seq: int, cache: Path, ready: Path | None, *, is_seen_whole: bool
    ) -> None:
        self._dataset, self._host, self._seq, self._cache, self._ready = dataset, host, seq, cache, ready
        self._is_seen_whole = is_seen_whole
        self.touches = Touches(host.clock)

    def run(self, on_over: Callable[[], None], ended: threading.Event) -> None:
        """Until it is over or the mount is: then what was read is published."""
        while not (self._is_said() or self.touches.is_over()):
            if ended.wait(_LOOK_S):
                return
        on_over()
        touched = self.touches.in_order()
        if self._ready is not None:
            with contextlib.suppress(OSError):
                write_atomic(self._ready, b"")
        if touched and self._is_seen_whole and not self._is_published():
            with contextlib.suppress(BoxlinkError, OSError):
                self._publish(touched)

    def _is_said(self) -> bool:
        return self._ready is not None and self._ready.exists()

    def read_trace(self) -> Iterable[tuple[float, Extent]]:
        """What earlier start-ups needed, as this seq has it, or else what one is likely to need; nothing where that
        cannot be had at once."""
        if self._is_said():
            return []
        try:
            touches = union(read_traces(self._dataset))
            if not touches:
                runs = self._dataset.manifest_at(self._seq).runs
                # As a tree is served: what one of the two has read the other need not ask for.
                with opened_chain(self._dataset.store, self._dataset.root, runs, self._cache) as chain:
                    return list(locate(chain, likely(islice(chain.listdir(b""), LOOKED_AT))))
            with self._chain(_FILL_BYTES_MAX) as (chain, executor):
                touches.sort(key=lambda touch: sort_key(*split_path(touch.path)))
                share = -(-len(touches) // _ASKED_AT_ONCE)
                groups = [touches[first : first + share] for first in range(0, len(touches), share)]
                return [
                    item for found in executor.map(lambda group: list(locate(chain, group)), groups) for item in found
                ]
        except BoxlinkError:
            return []

    def _publish(self, touched: list[tuple[int, int]]) -> None:
        if is_trace_wanted(self._dataset, self._seq):  # asked first: to find paths takes a look at all of the chain
            with self._chain() as (chain, _):
                publish_trace(self._dataset, self._host, self._seq, resolve(chain, touched))
        write_atomic(self._cache / _PUBLISHED, b"%d" % self._seq)

    def _is_published(self) -> bool:
        """Whether this node has published a trace of the seq before."""
        try:
            return int((self._cache / _PUBLISHED).read_bytes()) >= self._seq
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def _chain(self, fill_bytes_max: int | None = None) -> Iterator[tuple[Chain, Executor]]:
        """The seq's chain, and threads to ask it side by side. Its runs are brought here whole, which is few requests,
        unless they have more bytes than that."""
        manifest = self._dataset.manifest_at(self._seq)
        runs = RunCache(self._cache.parent / "run", self._dataset.store)
        with runs.in_use(), ThreadPoolExecutor(_ASKED_AT_ONCE) as executor:
            if fill_bytes_max is None or sum(run.object_bytes for run in manifest.runs) <= fill_bytes_max:
                for _ in executor.map(lambda run: runs.fill(self._dataset.root, [run]), manifest.runs):
                    pass
            yield Chain.of(runs, self._dataset.root, manifest.runs), executor
