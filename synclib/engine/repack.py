"""Repacking: live chunks of sparse or small packs, and strays, go into new packs, in path order; content stays the
same (I4).

The chain becomes a snap that names the new places. Old packs stay until no kept seq reaches them: a collection then
frees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from synclib.core.entry import ChunkRef
from synclib.core.manifest import Manifest, RunRef
from synclib.core.pack import HEADER_BYTES, PACK_BYTES_TARGET, PackInfo
from synclib.core.repacking import PackUse, Window, choose_packs, choose_windows, strays, strays_of, windows
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.engine.compact import with_merged
from synclib.engine.head_swap import update_head
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lease import Holder, Moved, intent
from synclib.engine.repack_job import RepackJob, repack, run_repack_job
from synclib.engine.workers import run_jobs, worker_count
from synclib.errors import Conflict, Corrupt
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.merge import Moves, merge
from synclib.lazy.run_cache import RunCache
from synclib.store.meter import Meter

BUDGET_BYTES = 4 << 30
_ATTEMPTS = 5
_OFFSET_BITS = 40  # a pack is some 32 MiB


@dataclass
class RepackedResult:
    """``packs``: how many were (or would be) written anew, of so many bytes. ``live_bytes``: what was moved in all,
    with ``gathered_bytes`` of strays, which are of these packs or of others."""

    manifest: Manifest
    packs: int = 0
    pack_bytes: int = 0
    live_bytes: int = 0
    gathered_bytes: int = 0
    new_packs: int = 0
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True)
class RepackOptions:
    """``budget_bytes`` bounds what is read, and so what is written, about half of it for strays. ``start`` makes the
    executor that packs are written in."""

    budget_bytes: int = BUDGET_BYTES
    is_dry_run: bool = False
    start: Callable[[], Executor] | None = None


def repack_dataset(
    dataset: Dataset, host: Host, connect: Connect | None, options: RepackOptions, progress: Progress
) -> RepackedResult:
    """Write sparse and small packs of the newest seq anew, within a budget."""
    cache = RunCache(host.dataset_cache(dataset.store.url, dataset.root) / "run", dataset.store)
    with cache.in_use():
        for _ in range(_ATTEMPTS):
            holder = intent(dataset, host)
            try:
                done = _Repacking(dataset, host, connect, cache, holder, options, progress).run()
            except Moved:
                continue
            finally:
                holder.end()
            if done is not None:
                return done
    raise Conflict(f"{dataset.name} changes faster than it can be repacked", hint="run it again when others are done")


class _Repacking:
    def __init__(
        self,
        dataset: Dataset,
        host: Host,
        connect: Connect | None,
        cache: RunCache,
        holder: Holder,
        options: RepackOptions,
        progress: Progress,
    ) -> None:
        self._dataset, self._host, self._cache, self._holder = dataset, host, cache, holder
        self._connect = connect or Connect(dataset.store.url)
        self._options, self._progress = options, progress

    def run(self) -> RepackedResult | None:
        """What was done; None when others changed the chain meanwhile so that it no longer fits."""
        dataset, options = self._dataset, self._options
        head = dataset.read_head()
        result = RepackedResult(head.manifest)
        if not options.is_dry_run:
            self._holder.take(head, head.manifest.seq)
        self._cache.fill(dataset.root, head.manifest.runs)
        chain = Chain.of(self._cache, dataset.root, head.manifest.runs)
        choice = _choose(chain, options.budget_bytes)
        result.packs = len(choice.packs)
        result.pack_bytes = sum(use.chunk_bytes for use in choice.packs)
        result.gathered_bytes = sum(window.live_bytes for window in choice.windows)
        result.live_bytes = result.gathered_bytes + sum(use.live_bytes for use in choice.packs)
        if not (choice.packs or choice.windows) or options.is_dry_run:
            return result
        moves = self._move(chain, choice, result)
        ref = self._build(head, chain, moves)
        state = update_head(
            dataset,
            self._host,
            lambda state: with_merged(state, head.manifest.runs, ref),
            check=self._holder.check,
        )
        if state is None:
            return None
        result.manifest = state.manifest
        return result

    def _move(self, chain: Chain, choice: _Choice, result: RepackedResult) -> Moves:
        """Upload what was chosen in new packs, in path order."""
        moves = Moves(choice.sources)
        store = self._dataset.store
        jobs = run_jobs(
            self._jobs(chain, choice),
            lambda job: repack(job, store),
            run_repack_job,
            self._options.start,
            2 * worker_count(),
        )
        moved_bytes = 0
        for done in jobs:
            result.meter.add(done.meter)
            result.new_packs += 1
            moves.add(done.info, done.places, done.chunks)
            moved_bytes += sum(chunk.stored_bytes for chunk in done.chunks)
            self._progress("moved", moved_bytes, result.live_bytes)
        moves.seal()
        return moves

    def _jobs(self, chain: Chain, choice: _Choice) -> Iterator[RepackJob]:
        chunks: list[ChunkRef] = []
        size = 0
        for chunk in _moved_chunks(chain, choice):
            chunks.append(chunk)
            size += chunk.stored_bytes
            if size >= PACK_BYTES_TARGET:
                yield self._job(chunks)
                chunks, size = [], 0
        if chunks:
            yield self._job(chunks)

    def _job(self, chunks: list[ChunkRef]) -> RepackJob:
        return RepackJob(self._connect, self._dataset.root, self._holder.mint(), chunks)

    def _build(self, head: HeadState, chain: Chain, moves: Moves) -> RunRef:
        dataset, runs = self._dataset, head.manifest.runs
        packs: dict[bytes, PackInfo] = {}
        builder = RunBuilder("snap", 1, runs[-1].seq_last, PackTable())
        merge(chain.runs, builder, packs, is_snap=True, moves=moves)
        parts = builder.finish()
        ref = parts.ref(self._holder.mint(), min(run.created_at_ns for run in runs))
        if ref.entry_count != head.manifest.entry_count:
            raise Corrupt("the repacked chain does not have the entries that its manifest names", dataset=dataset.name)
        path = self._cache.keep(ref.key(dataset.root), parts.read())
        parts.close()
        dataset.store.put(ref.key(dataset.root), path)
        return ref


@dataclass(frozen=True)
class _Choice:
    """Packs of which all that is live is moved, with what else they hold than strays, and windows to gather."""

    packs: list[PackUse]
    windows: list[Window]

    @property
    def sources(self) -> frozenset[bytes]:
        """The packs that anything is moved out of."""
        return frozenset(
            [use.ulid for use in self.packs] + [pack for window in self.windows for pack in window.pack_bytes]
        )


def _choose(chain: Chain, budget_bytes: int) -> _Choice:
    """Strays first: what they leave of their packs may be too little."""
    # Of their chunks: header, slots and footer are no waste.
    sizes = {
        info.ulid: info.object_bytes - HEADER_BYTES - info.tail_bytes
        for run in chain.runs
        for info in (PackInfo(*row) for row in run.tail.packs)
    }
    live, counts = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)

    def found() -> Iterator[Window]:
        for number, window in enumerate(windows(chain.entries(with_hashes=False))):
            for chunk, is_own in window:
                if is_own:
                    live[chunk.pack] += chunk.stored_bytes
                    counts[chunk.pack] += 1
            if (scattered := strays_of(number, window)) is not None:
                yield scattered

    chosen = choose_windows(found(), budget_bytes // 2)
    for window in chosen:
        for pack in window.pack_bytes:
            live[pack] -= window.pack_bytes[pack]
            counts[pack] -= window.pack_chunks[pack]
    uses = [PackUse(ulid, size, min(live[ulid], size), counts[ulid]) for ulid, size in sizes.items()]
    left = budget_bytes - sum(window.read_bytes for window in chosen)
    return _Choice(choose_packs(uses, left), chosen)


def _moved_chunks(chain: Chain, choice: _Choice) -> Iterator[ChunkRef]:
    """Each chunk that is moved, once, in the order of the first path."""
    packs = {use.ulid for use in choice.packs}
    gathered = {window.number for window in choice.windows}
    numbers = {ulid: number << _OFFSET_BITS for number, ulid in enumerate(choice.sources)}
    seen: set[int] = set()
    for number, window in enumerate(windows(chain.entries())):
        stray = {(chunk.pack, chunk.offset) for chunk in strays(window)[0]} if number in gathered else set()
        for chunk, _ in window:
            if chunk.pack in packs or (chunk.pack, chunk.offset) in stray:
                place = numbers[chunk.pack] | chunk.offset
                if place not in seen:
                    seen.add(place)
                    yield chunk
