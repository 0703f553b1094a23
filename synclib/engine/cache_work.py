"""What goes on with a node's cache of a dataset while a seq is read from it, by whatever way: reads that fetch, what is
fetched ahead of them, the trace of a start-up, the pin that keeps collectors away, eviction and scrub."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from synclib.core.frame import DECODE_ERRORS
from synclib.disk.atomic import write_atomic
from synclib.disk.blob_cache import BlobCache
from synclib.disk.hydrated import Stamp
from synclib.engine.cache_upkeep import CacheUpkeep
from synclib.engine.host import Host
from synclib.engine.lease import pin
from synclib.engine.startup import StartUp
from synclib.errors import BoxlinkError
from synclib.lazy.blob import Blob, Extents, Near
from synclib.lazy.dataset import Dataset
from synclib.lazy.hydrate import Hydrator
from synclib.lazy.mounted_seqs import MountedSeqs
from synclib.store.retry import untried

_PIN_CHECK_S = 600.0


class Background(msgspec.Struct, frozen=True):
    """What is fetched that nobody has asked for yet. ``rate``: bytes a second, 0 for as fast as it goes; ``is_whole``:
    everything, else what a trace says and what lies ahead of readers."""

    rate: int = 0
    is_whole: bool = True


class CacheWork:
    """Of one seq; ``word``: of what it is and where it lies (:attr:`Prepared.word`). ``ready``: a file, if any, that
    says that the start-up of whoever reads is over; ``is_seen_whole``: nobody read this way before, so that what is
    read now is all of it. ``on_whole``: called when every byte is here."""

    def __init__(
        self,
        dataset: Dataset,
        host: Host,
        seq: int,
        word: str,
        cache: BlobCache,
        extents: Extents,
        seqs: MountedSeqs,
        background: Background,
        *,
        address_end: int,
        total_bytes: int,
        ready: Path | None,
        near: Near | None,
        is_seen_whole: bool,
        on_whole: Callable[[Stamp], None],
        on_error: Callable[[BoxlinkError], None],
    ) -> None:
        store, root, clock = dataset.store, dataset.root, host.clock
        directory = cache.path.parent
        note_dataset(directory, store.url, root)
        self.cache = cache
        self.upkeep = CacheUpkeep(cache, extents, address_end, seqs, clock, on_error)
        self.blob = Blob(store, root, extents, cache, clock, near)
        once = Dataset(untried(store), root)
        self.start_up = start_up = StartUp(
            once, host, seq, word, extents, directory, ready, is_seen_whole=is_seen_whole
        )
        self.hydrator = Hydrator(
            self.blob,
            extents,
            cache,
            untried(store),
            clock,
            rate=background.rate,
            is_whole=background.is_whole,
            total_bytes=total_bytes,
            touches=start_up.touches,
            read_trace=start_up.read_trace,
            on_whole=on_whole,
        )
        self.ended = threading.Event()
        self._holder = threading.Thread(target=hold_seq, args=(dataset, host, seq, self.ended))
        self._recorder = threading.Thread(target=start_up.run, args=(self.hydrator.start_up_is_over, self.ended))

    def hold(self) -> None:
        """Keep collectors from the seq, from now on."""
        self._holder.start()

    def start(self) -> None:
        """Begin with what goes on in the background."""
        self.upkeep.start()
        self.hydrator.start()
        self._recorder.start()

    def stop(self) -> None:
        """End it; reads go on. May be called again."""
        self.ended.set()
        self.hydrator.stop()
        self.upkeep.end()

    def let_go(self, seconds: float) -> None:
        """Wait for the pin to be given back, no longer than that."""
        self._holder.join(seconds)

    def close(self) -> None:
        """What is under way is waited for; what came is durable. Closes the cache."""
        self.stop()
        self.blob.close()
        with contextlib.suppress(BoxlinkError):  # of a disk that fails; what is not durable is not believed
            self.cache.sync()
        self.cache.close()
        for thread in (self._recorder, self._holder):
            if thread.is_alive():
                thread.join()


def hold_seq(dataset: Dataset, host: Host, seq: int, ended: threading.Event) -> None:
    """Keep collectors away from a seq while it is served. A node may have no right to write: then it goes without."""
    holder = pin(dataset, host)
    while True:
        with contextlib.suppress(BoxlinkError):
            if not holder.is_held:
                holder.take(dataset.read_head(), seq)
            holder.renew()
        if ended.wait(_PIN_CHECK_S):
            break
    holder.end()


class _Cached(msgspec.Struct, frozen=True):
    store: str
    root: str


def note_dataset(directory: Path, store: str, root: str) -> None:
    """Whose cache it is: its name is a hash. Where the disk is full it goes without."""
    data = msgspec.json.encode(_Cached(store, root))
    with contextlib.suppress(OSError):
        if not (directory / "dataset.json").exists():
            write_atomic(directory / "dataset.json", data)


def cached_dataset(directory: Path) -> tuple[str, str]:
    """(store, root) of the dataset that a cache is of; empty where it does not say."""
    try:
        found = msgspec.json.decode((directory / "dataset.json").read_bytes(), type=_Cached)
    except (OSError, *DECODE_ERRORS):
        return "", ""
    return found.store, found.root
