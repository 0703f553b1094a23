"""Repacking: live chunks of sparse or small packs go into new ones, in path order; content stays the same (I4).

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
from synclib.core.repacking import PackUse, choose_packs
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
    """``packs``: how many were (or would be) written anew, of so many bytes, of which so many are live."""

    manifest: Manifest
    packs: int = 0
    pack_bytes: int = 0
    live_bytes: int = 0
    new_packs: int = 0
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True)
class RepackOptions:
    """``budget_bytes`` bounds the live bytes that are written anew; what lies between them may be read too. ``start``
    makes the executor that packs are written in."""

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
        chosen = choose_packs(_uses(chain), options.budget_bytes)
        result.packs = len(chosen)
        result.pack_bytes = sum(use.chunk_bytes for use in chosen)
        result.live_bytes = sum(use.live_bytes for use in chosen)
        if not chosen or options.is_dry_run:
            return result
        moves = self._move(chain, frozenset(use.ulid for use in chosen), result)
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

    def _move(self, chain: Chain, victims: frozenset[bytes], result: RepackedResult) -> Moves:
        """Upload the live chunks of the victims in new packs, in path order."""
        moves = Moves(victims)
        store = self._dataset.store
        jobs = run_jobs(
            self._jobs(chain, victims),
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

    def _jobs(self, chain: Chain, victims: frozenset[bytes]) -> Iterator[RepackJob]:
        chunks: list[ChunkRef] = []
        size = 0
        for chunk in _live_chunks(chain, victims):
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


def _place(chunk: ChunkRef) -> tuple[bytes, int]:
    return chunk.pack, chunk.offset


def _live_chunks(chain: Chain, victims: frozenset[bytes]) -> Iterator[ChunkRef]:
    """Each chunk that live entries have in one of these packs, once, in the order of the first path."""
    numbers = {ulid: number << _OFFSET_BITS for number, ulid in enumerate(victims)}
    seen: set[int] = set()
    for entry in chain.entries():
        for chunk in entry.chunks:
            number = numbers.get(chunk.pack)
            if number is not None and (place := number | chunk.offset) not in seen:
                seen.add(place)
                yield chunk


def _uses(chain: Chain) -> Iterator[PackUse]:
    """How much of each pack of a chain its live entries use, at most: a chunk that several files have counts each time,
    but for neighbours, since to remember all chunks would take memory with their number."""
    # Of their chunks: header, slots and footer are no waste.
    sizes = {
        info.ulid: info.object_bytes - HEADER_BYTES - info.tail_bytes
        for run in chain.runs
        for info in (PackInfo(*row) for row in run.tail.packs)
    }
    live, counts = dict.fromkeys(sizes, 0), dict.fromkeys(sizes, 0)
    last: tuple[bytes, int] = (b"", -1)
    for entry in chain.entries(with_hashes=False):
        for chunk in entry.chunks:
            if _place(chunk) != last:
                live[chunk.pack] += chunk.stored_bytes
                counts[chunk.pack] += 1
            last = _place(chunk)
    return (PackUse(ulid, size, min(live[ulid], size), counts[ulid]) for ulid, size in sizes.items())
