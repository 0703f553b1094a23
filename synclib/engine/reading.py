"""Reading and uploading what changed: jobs for worker processes, in order, and what is known of chunks already."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from synclib.clock import ulid_text
from synclib.core.entry import Entry, Kind, group_of
from synclib.core.pack import PACK_BYTES_TARGET, PackInfo
from synclib.disk.chunk_index import ChunkIndex, index_path
from synclib.disk.held import boot_id
from synclib.disk.link_contents import LinkContents
from synclib.disk.scan import Found
from synclib.engine.host import Connect, Host
from synclib.engine.lease import Holder
from synclib.engine.pack_job import Buffers, PackJob, PackResult, pack_files, run_pack_job
from synclib.engine.workers import run_jobs, start_processes, worker_count
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset

_JOB_FILES = 8000
_JOB_ITEMS = 20_000
# Entries of the chain that are made findable before a job: so many, and so many more for each file of the job. What is
# missed is stored once more; what is done is kept, so that the next publish goes on from there.
_INDEXED_PER_JOB = 20_000
_INDEXED_PER_FILE = 4
_INDEXED_AT_ONCE = 20_000


class Reading:
    """One publish's reading of ``directory``.

    ``chain``: the head's, whose chunks may be referred to; ``packs``: what is known of packs, those of the chain
    included, and grows by what is uploaded. ``connect``: for worker processes, None keeps all work here.
    """

    def __init__(
        self,
        dataset: Dataset,
        connect: Connect | None,
        directory: bytes,
        prefix: bytes,
        host: Host,
        intent: Holder,
        chain: Chain,
        packs: dict[bytes, PackInfo],
    ) -> None:
        self._dataset, self._connect = dataset, connect
        self._directory, self._prefix = directory, prefix
        self._host, self._intent = host, intent
        self._chain, self._packs = chain, packs
        self._index: ChunkIndex | None = None
        # Of hard-link groups; opened for the first one. The paths that lead a group, by job: few at a time.
        self._contents: LinkContents | None = None
        self._leaders: deque[dict[bytes, bytes]] = deque()

    def results(self, changes: Iterable[Found | Entry], begin: Callable[[int], None]) -> Iterator[PackResult]:
        """What became of the changes, in their order; ``begin`` is called before anything is written to the store, and
        with how many bytes of files that will then have been of, all together."""
        processors = worker_count()
        # A job waits for its last pack to be durable, or to be taken: others have the processors meanwhile.
        count = processors * 2 if self._dataset.store.url.startswith("s3:") else processors + 1
        start = None if self._connect is None else lambda: start_processes("synclib.engine.pack_job", count)
        store = self._dataset.store
        buffers = Buffers()
        jobs = self._jobs(changes, begin)
        for result in run_jobs(jobs, lambda job: pack_files(job, store, buffers), run_pack_job, start, count + 2):
            for info in result.packs:
                self._packs[info.ulid] = info
            self._link(result)
            yield result

    def _jobs(self, changes: Iterable[Found | Entry], begin: Callable[[int], None]) -> Iterator[PackJob]:
        items: list[Found | Entry] = []
        leaders: dict[bytes, bytes] = {}
        size = files = total = 0
        for change in changes:
            item = self._follower(change, leaders)
            items.append(item)
            if isinstance(item, Found):
                size += item.size
                files += 1
            if size >= PACK_BYTES_TARGET or files >= _JOB_FILES or len(items) >= _JOB_ITEMS:
                total += size
                begin(total)
                self._leaders.append(leaders)
                yield self._job(items, files)
                items, leaders, size, files = [], {}, 0, 0
        if items:
            begin(total + size)
            self._leaders.append(leaders)
            yield self._job(items, files)

    def _job(self, items: list[Found | Entry], files: int) -> PackJob:
        if files:
            self._fill_index(_INDEXED_PER_JOB + files * _INDEXED_PER_FILE)
        return PackJob(
            self._connect or Connect(self._dataset.store.url),
            self._dataset.root,
            self._directory,
            self._prefix,
            self._index.path if self._index is not None and files else None,
            ulid_text(self._intent.session),
            self._intent.mint(),
            items,
        )

    def _fill_index(self, budget: int) -> None:
        """Make the chain's chunks findable, the newest runs first, as far as the budget reaches."""
        if self._index is None:
            cache_directory = self._host.dataset_cache(self._dataset.store.url, self._dataset.root)
            self._index = ChunkIndex(index_path(cache_directory, boot_id()), ulid_text(self._intent.session))
            self._index.add_live(
                self._packs[row[0]] for run in self._chain.runs for row in run.tail.packs if row[0] in self._packs
            )
        for run in reversed(self._chain.runs):
            while budget > 0 and (start := self._index.next_key(run.ref.ulid)) is not None:
                entries = list(itertools.islice(run.entries(start), min(budget, _INDEXED_AT_ONCE) + 1))
                budget -= len(entries)
                is_all = len(entries) <= _INDEXED_AT_ONCE and budget >= 0
                rest = None if is_all else entries.pop().key
                self._index.add_run(run.ref.ulid, (chunk for entry in entries for chunk in entry.chunks), rest)

    def _follower(self, change: Found | Entry, leaders: dict[bytes, bytes]) -> Found | Entry:
        """A further link of a file that is read already needs no reading: its entry is completed afterwards.

        ``leaders``: gets the group of each path that is read for the others.
        """
        if not isinstance(change, Found):
            return change
        group = group_of(change.extra)
        if not group:
            return change
        if self._contents is None:
            self._contents = LinkContents()
        leading = self._contents.lead(group, change.mtime_ns, change.size)
        if leading is None:
            leaders[change.path] = group
        if leading != (change.mtime_ns, change.size):
            return change
        return Entry(
            change.directory,
            change.name,
            Kind.FILE,
            change.mode,
            change.mtime_ns,
            change.size,
            extra=change.extra,
        )

    def _link(self, result: PackResult) -> None:
        """Complete the entries of further links, whose first one came before them."""
        leaders = self._leaders.popleft()
        if self._contents is None:
            return
        for path, reason in result.skipped:
            if path in leaders:
                self._contents.keep(leaders[path], reason)
        entries: list[Entry] = []
        for entry in result.entries:
            if not (group := group_of(entry.extra)) or entry.kind != Kind.FILE:
                entries.append(entry)
            elif entry.path in leaders:
                self._contents.keep(group, entry.chunks)
                entries.append(entry)
            elif entry.chunks or not entry.size:
                entries.append(entry)
            elif isinstance(content := self._contents.content(group), str):
                result.skipped.append((entry.path, content))
            else:
                entries.append(msgspec.structs.replace(entry, chunks=content))
        result.entries = entries

    def end(self, run: bytes | None) -> None:
        """The publish is over; ``run`` is what it committed: all that it names is findable."""
        if self._contents is not None:
            self._contents.close()
        if self._index is not None:
            try:
                if run is not None:
                    self._index.add_run(run, [])
            finally:
                self._index.end_session()
                self._index.close()
