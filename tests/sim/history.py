"""The reference model: what every seq holds, decided at the head's compare-and-swap, and compared with the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import Entry, Kind
from synclib.core.manifest import RECENT_COMMITS, Manifest, RunRef, decode_head, manifest_digest
from synclib.core.pack import decode_chunk
from synclib.errors import BoxlinkError
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import RangeSource, RunReader, StoreRuns
from synclib.store.memory import MemoryStore
from tests.sim.scheduler import Violation
from tests.sim.trees import Thing, Tree, difference, digest_of, merge

ROOT = names.dataset_root("covers")
HEAD = names.head_key(ROOT)


@dataclass(eq=False)
class Attempt:
    """One publish: what it is given, and what is seen of it at the store."""

    actor: str
    base: Tree | None  # None: what the head is when it begins
    mine: Tree
    start_seq: int | None = None  # of the head that it read first
    committed: int = 0  # the seq it made
    may_be_committed: bool = False  # whether the answer to a write of the head was lost

    def result(self, history: History, seq: int) -> Tree:
        """The tree that it makes of a seq."""
        base = self.base if self.base is not None else history.tree(self.start_seq or 0)
        return merge(base, self.mine, history.tree(seq))


@dataclass(frozen=True)
class Seq:
    """A committed seq: all of it, and what of the store it needs."""

    number: int
    tree: Tree
    digest: str
    manifest: bytes
    commits: list[str]  # of the head that held it last
    keys: frozenset[str]


@dataclass
class History:
    """All seqs. ``put`` and ``delete`` are told of every change of the store, when it is applied."""

    memory: MemoryStore
    seqs: list[Seq] = field(default_factory=list)
    heads: list[tuple[bytes, str]] = field(default_factory=list)  # each head there was, with its etag
    known: defaultdict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    _needed: dict[str, int] = field(default_factory=dict)  # key -> a seq that needs it
    _readers: dict[bytes, RunReader] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return len(self.seqs)

    def tree(self, seq: int) -> Tree:
        return self.seqs[seq - 1].tree if seq else {}

    def seq_of(self, etag: str) -> int:
        """The seq of a head that was read."""
        return next(decode_head(data, ROOT)[1].seq for data, found in self.heads if found == etag)

    def know(self, tree: Tree) -> None:
        """Bytes that may from now on be found under these names."""
        for path, thing in tree.items():
            self.known[path].add(thing.data)

    def put(self, attempt: Attempt | None, key: str, old: bytes | None, data: bytes, etag: str) -> None:
        if key == HEAD:
            self.heads.append((data, etag))
            self._replace(attempt, data)
        elif key in self._needed and old != data:
            raise Violation(f"I3: {key}, which seq {self._needed[key]} needs, was overwritten with other bytes")

    def delete(self, key: str) -> None:
        if key in self._needed:
            raise Violation(f"I3: {key} was deleted, but seq {self._needed[key]} needs it")

    def _replace(self, attempt: Attempt | None, data: bytes) -> None:
        """A new head: of the same seq by one who keeps house, or of the next one by one who publishes."""
        head, manifest = decode_head(data, ROOT)
        former = self.seqs[-1] if self.seqs else None
        if former is not None and head.commits != [*former.commits, head.commits[-1]][-RECENT_COMMITS:]:
            raise Violation(f"I5: a head of seq {manifest.seq} replaces one of seq {self.last} that it does not follow")
        if former is not None and former.manifest != head.manifest:
            key = names.manifest_key(ROOT, former.number, manifest_digest(former.manifest))
            if not self._has(key):
                raise Violation(f"I3: seq {former.number} is no longer the head, and has no manifest")
            self._needed[key] = former.number
        if former is not None and manifest.seq == former.number:
            tree = former.tree
            self.seqs.pop()
        else:
            tree = self._commit(attempt, manifest)
        self.check(manifest, tree)
        keys = frozenset(self._closure(manifest))
        self.seqs.append(Seq(manifest.seq, tree, manifest.digest, head.manifest, head.commits, keys))
        self._needed.update(dict.fromkeys(keys, manifest.seq))
        self.know(tree)

    def _commit(self, attempt: Attempt | None, manifest: Manifest) -> Tree:
        """What the next seq must be (I5)."""
        if manifest.seq != self.last + 1:
            raise Violation(f"I5: a head of seq {manifest.seq} replaces one of seq {self.last}")
        if attempt is None:
            raise Violation("I5: a head was written by one who does not publish")
        if attempt.committed:
            raise Violation(f"I5: one publish made seq {attempt.committed} and seq {manifest.seq}")
        attempt.committed = manifest.seq
        return attempt.result(self, self.last)

    def check(self, manifest: Manifest, expected: Tree) -> None:
        """That a manifest leads to exactly this tree, and says so (I3, I4)."""
        found = self.read(manifest.runs)
        if found != expected:
            raise Violation(f"I4: seq {manifest.seq} is not what it should be\n{difference(expected, found)}")
        if manifest.digest != digest_of(expected):
            raise Violation(f"I4: the digest of seq {manifest.seq} is not that of its content")
        files = [thing for thing in expected.values() if thing.kind == Kind.FILE]
        counted = (len(expected), len(files), sum(len(thing.data) for thing in files))
        if counted != (manifest.entry_count, manifest.file_count, manifest.plain_bytes):
            raise Violation(f"seq {manifest.seq} counts wrong: {counted} are there")

    def read(self, runs: Iterable[RunRef], source: RangeSource | None = None) -> Tree:
        """The tree that a list of runs makes, every byte of it from the store (or, the runs, from ``source``)."""
        try:
            readers = map(self._reader, runs) if source is None else (RunReader(source, ROOT, ref) for ref in runs)
            chain = Chain(readers)
            return {entry.path: self._thing(entry) for entry in chain.entries()}
        except BoxlinkError as error:
            raise Violation(f"I3: {error.kind}: {error.message} {error.key}") from error

    def _reader(self, ref: RunRef) -> RunReader:
        if ref.ulid not in self._readers:
            self._readers[ref.ulid] = RunReader(StoreRuns(self.memory), ROOT, ref)
        return self._readers[ref.ulid]

    def _thing(self, entry: Entry) -> Thing:
        kind = Kind(entry.kind)
        if kind != Kind.FILE:
            return Thing(kind, entry.target, entry.mode, entry.mtime_ns)
        pieces = []
        for chunk in entry.chunks:
            key = names.pack_key(ROOT, ulid_text(chunk.pack))
            (stored,) = self.memory.get_ranges(key, [(chunk.offset, chunk.offset + chunk.stored_bytes)])
            pieces.append(bytes(decode_chunk(chunk, stored)))
        return Thing(kind, b"".join(pieces), entry.mode, entry.mtime_ns)

    def _closure(self, manifest: Manifest) -> Iterable[str]:
        """The runs, and the packs that live entries lead to."""
        readers = [self._reader(ref) for ref in manifest.runs]
        for reader in readers:
            yield reader.key
        for entry in Chain(readers).entries():
            for chunk in entry.chunks:
                yield names.pack_key(ROOT, ulid_text(chunk.pack))

    def _has(self, key: str) -> bool:
        return any(info.key == key for info in self.memory.list(key))
