"""The reference model: what every seq holds, decided at the head's compare-and-swap, and compared with the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from synclib.clock import ulid_text
from synclib.core import names
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.core.manifest import (
    RECENT_COMMITS,
    Head,
    Manifest,
    RunRef,
    decode_head,
    decode_manifest,
    encode_manifest,
    manifest_digest,
    manifest_id,
)
from synclib.core.pack import decode_chunk
from synclib.core.retention import Retention
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import HeadState
from synclib.lazy.run_reader import RangeSource, Request, RunReader
from synclib.store.base import Buffer
from synclib.store.memory import MemoryStore
from tests.sim.keeping import Keeping, Version
from tests.sim.scheduler import Violation
from tests.sim.trees import Thing, Tree, difference, digest_of, leading_to, merge, with_directories

ROOT = names.dataset_root("covers")
HEAD = names.head_key(ROOT)
_MANIFESTS = names.manifest_prefix(ROOT)
OBJECTS = (names.run_prefix(ROOT), names.pack_prefix(ROOT))
_LEASES = (names.intent_prefix(ROOT), names.pin_prefix(ROOT))


@dataclass(eq=False)
class Attempt:
    """One publish or revert: what it is given, and what is seen of it at the store."""

    actor: str
    base: Tree | None  # None: what the head is when it begins
    mine: Tree
    prefix: bytes = b""  # the folder of the dataset that ``base`` and ``mine`` are all of
    above: Tree = field(default_factory=dict)  # what the base has of the directories that lead to it
    target: int | None = None  # the seq that a revert brings back
    start_seq: int | None = None  # of the head that it read first
    committed: int = 0  # the seq it made
    may_be_committed: bool = False  # whether the answer to a write of the head was lost

    def result(self, history: History, seq: int) -> Tree:
        """The tree that it makes of a seq."""
        if self.target is not None:
            return history.tree(self.target)
        start = history.tree(self.start_seq or 0)
        base, above = self.base, self.above
        if base is None:
            base, above = below(start, self.prefix), leading_to(start, self.prefix)
        return merge(base, with_directories(self.mine, start, above, self.prefix), history.tree(seq))


@dataclass(frozen=True)
class Deed:
    """On whose behalf something is written or deleted, as it was when it was begun."""

    actor: str
    attempt: Attempt | None = None
    retention: Retention | None = None  # of the collection that its actor is in
    is_held: bool = False  # whether a lease of its actor's stood there


@dataclass(frozen=True)
class Seq:
    """A committed seq: all of it."""

    number: int
    tree: Tree
    digest: str
    manifest: bytes  # of the head that held it last


@dataclass
class History:
    """All seqs of one store. ``put`` and ``delete`` are told of every change of it, when it is applied.

    ``source``: the history that this one is a copy of.
    """

    memory: MemoryStore
    source: History | None = None
    seqs: list[Seq] = field(default_factory=list)
    heads: list[tuple[bytes, str]] = field(default_factory=list)  # each head there was, with its etag
    commits: list[str] = field(default_factory=list)
    former: list[bytes] = field(default_factory=list)  # manifests that the head holds beside its own
    known: defaultdict[bytes, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    objects: dict[str, bytes] = field(default_factory=dict)  # every immutable object that there ever was
    versions: dict[bytes, Version] = field(default_factory=dict)  # by the digest of the manifest
    keeping: Keeping = field(default_factory=Keeping)
    committed: set[bytes] = field(default_factory=set)  # versions that were in the head
    _checked: set[bytes] = field(default_factory=set)  # versions that were read
    _runs: dict[bytes, list[Entry]] = field(default_factory=dict)
    _chunks: dict[tuple[bytes, int], bytes] = field(default_factory=dict)

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

    def put(self, deed: Deed, key: str, old: bytes | None, data: bytes, etag: str, now: float) -> None:
        if key == HEAD:
            self.heads.append((data, etag))
            self._replace(deed, data)
        elif key.startswith(OBJECTS) or key.startswith(_MANIFESTS):
            if self.objects.setdefault(key, data) != data:
                raise Violation(f"I3: {key} was overwritten with other bytes")
            version = self.version(data) if key.startswith(_MANIFESTS) else None
            # It was right when it was begun: the manifest of a seq here, or one that is being copied under a lease.
            may_lack = version is not None and (version.id in self.committed or deed.is_held)
            self.keeping.put(key, version, may_lack=may_lack)
        elif key.startswith(_LEASES):
            self.keeping.claims.put(deed.actor, key, old, data, now)
            self.keeping.claims.condemned.setdefault(key, self.keeping.condemned)

    def delete(self, deed: Deed, key: str, now: float) -> None:
        if key == HEAD:
            raise Violation("I3: the head was deleted")
        if key.startswith(_LEASES):
            self.keeping.claims.delete(deed.actor, key, now)
        elif key.startswith(OBJECTS) or key.startswith(_MANIFESTS):
            self.keeping.delete(deed.actor, key, now, is_collected=deed.retention is not None)

    def _replace(self, deed: Deed, data: bytes) -> None:
        """A new head: of the same seq by one who keeps house, or of the next one by one who publishes."""
        try:
            head, manifest = decode_head(data, ROOT)
        except BoxlinkError as error:
            raise Violation(f"I4: a head was written that does not decode: {error.message}") from error
        former = self.seqs[-1] if self.seqs else None
        if former is not None and head.commits != [*self.commits, head.commits[-1]][-RECENT_COMMITS:]:
            raise Violation(f"I5: a head of seq {manifest.seq} replaces one of seq {self.last} that it does not follow")
        self.commits = head.commits
        self._check_former(head)
        if former is not None and manifest.seq == former.number:
            self.seqs.pop()
            tree = former.tree
        else:
            tree = self._copied(manifest) if self.source is not None else self._commit(deed.attempt, manifest)
        self._check_head(deed, head, manifest, tree)
        self.seqs.append(Seq(manifest.seq, tree, manifest.digest, head.manifest))
        self.know(tree)

    def _check_former(self, head: Head) -> None:
        """What a head no longer holds is an object."""
        held = [*self.former, self.seqs[-1].manifest] if self.seqs else []
        for data in held:
            seq = decode_manifest(data).seq
            key = names.manifest_key(ROOT, seq, manifest_digest(data))
            if data not in (*head.former, head.manifest) and key not in self.keeping.present:
                raise Violation(f"I3: seq {seq} is no longer in the head, and has no manifest")
        self.former = head.former

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

    def _copied(self, manifest: Manifest) -> Tree:
        """What a seq that was copied must be: all that lie between come with it."""
        assert self.source is not None
        if not self.last < manifest.seq <= self.source.last:
            raise Violation(f"I5: the copy's head of seq {self.last} was replaced by one of seq {manifest.seq}")
        self.seqs += self.source.seqs[self.last : manifest.seq - 1]
        for seq in self.seqs:
            self.know(seq.tree)
        return self.source.tree(manifest.seq)

    def _check_head(self, deed: Deed, head: Head, manifest: Manifest, tree: Tree) -> None:
        version = self.version(head.manifest)
        self.committed.add(version.id)
        lacking = version.keys - self.keeping.present
        if lacking:
            raise Violation(f"I3: the head of seq {manifest.seq} names what is not there: {sorted(lacking)}")
        if version.id not in self._checked:
            self.check(manifest, tree)
            self._checked.add(version.id)
        self.keeping.replace(deed.actor, deed.retention, head, version, self._copies(manifest.seq))

    def _copies(self, seq: int) -> list[Version]:
        """What a copy's head makes known: the manifests that stand there already."""
        if self.source is None:
            return []
        return [version for version in self.versions.values() if version.seq <= seq]

    def needs(self, lease: str, head: HeadState, seqs: Iterable[int]) -> set[str]:
        """What a lease holds that names these seqs, where its holder has this head."""
        unknown = self.keeping.claims.condemned.get(lease, set()) - set(head.head.condemned)
        if any(version.seq in seqs and version.ids & unknown for version in self.versions.values()):
            raise Violation(f"I3: a lease of seqs {sorted(seqs)} was given, of which something is condemned")
        held = [version for version in self.keeping.alive.values() if version.seq in seqs]
        if head.manifest.seq in seqs and head.etag is not None:
            held = [version for version in held if version.seq != head.manifest.seq]
            held.append(self.version(head.head.manifest))
        needs = {key for version in held for key in version.needs}
        if lacking := needs - self.keeping.present:
            raise Violation(f"I3: a lease of seqs {sorted(seqs)} was given, but {min(lacking)} is gone")
        # The head's manifest need not be an object yet.
        return needs | ({version.key for version in held} & self.keeping.present)

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

    def version(self, data: bytes) -> Version:
        """What a manifest needs."""
        digest = manifest_digest(data)
        name = manifest_id(digest)
        if name not in self.versions:
            manifest = decode_manifest(data)
            runs = {ref.key(ROOT): ref.ulid for ref in manifest.runs}
            try:
                live = self._live(manifest.runs).values()
            except BoxlinkError as error:
                raise Violation(f"I3: seq {manifest.seq}: {error.kind}: {error.message} {error.key}") from error
            packs = {chunk.pack for entry in live for chunk in entry.chunks}
            needs = {**runs, **{names.pack_key(ROOT, ulid_text(pack)): pack for pack in packs}}
            key = names.manifest_key(ROOT, manifest.seq, digest)
            self.versions[name] = Version(manifest.seq, name, key, manifest.published_at_ns, needs)
        return self.versions[name]

    def version_of(self, manifest: Manifest) -> Version:
        return self.version(encode_manifest(manifest))

    def read(self, runs: Iterable[RunRef], source: RangeSource | None = None) -> Tree:
        """The tree that a list of runs makes, from what the store has or once had (or, the runs, from ``source``)."""
        try:
            return {path: self._thing(entry) for path, entry in self._live(runs, source).items()}
        except BoxlinkError as error:
            raise Violation(f"I3: {error.kind}: {error.message} {error.key}") from error

    def _live(self, runs: Iterable[RunRef], source: RangeSource | None = None) -> dict[bytes, Entry]:
        live: dict[bytes, Entry] = {}
        for ref in runs:
            if ref.ulid not in self._runs:
                reader = RunReader(source or Kept(self.objects), ROOT, ref)
                self._runs[ref.ulid] = [entry for entry, _ in Chain([reader]).merged()]
            live.update((entry.path, entry) for entry in self._runs[ref.ulid])
        return {path: entry for path, entry in live.items() if entry.kind != Kind.TOMBSTONE}

    def _thing(self, entry: Entry) -> Thing:
        kind = Kind(entry.kind)
        if kind != Kind.FILE:
            return Thing(kind, entry.target, entry.mode, entry.mtime_ns)
        return Thing(kind, b"".join(map(self._plain, entry.chunks)), entry.mode, entry.mtime_ns)

    def _plain(self, chunk: ChunkRef) -> bytes:
        place = chunk.pack, chunk.offset
        if place not in self._chunks:
            key = names.pack_key(ROOT, ulid_text(chunk.pack))
            (stored,) = Kept(self.objects).get_ranges(key, [(chunk.offset, chunk.offset + chunk.stored_bytes)])
            self._chunks[place] = bytes(decode_chunk(chunk, stored))
        return self._chunks[place]


class Kept:
    """Every object as it was first written, for a model that forgets nothing."""

    is_far = False

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def get_many(self, requests: Sequence[Request]) -> list[list[Buffer]]:
        return [self.get_ranges(*request) for request in requests]

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        if key not in self._objects:
            raise Missing("it never was there", key=key)
        return [self._objects[key][start:stop] for start, stop in ranges]

    def drop(self, key: str) -> bool:
        return False


def below(tree: Tree, prefix: bytes) -> Tree:
    """What lies in a folder, under the same paths; all of it for the empty one."""
    return {path: thing for path, thing in tree.items() if not prefix or path.startswith(prefix + b"/")}
