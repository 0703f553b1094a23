"""Laying a delta on a head, and committing it: the compare-and-swap and what happens when it is lost."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.clock import ulid_bytes, ulid_text
from synclib.core import names
from synclib.core.delta import is_racy
from synclib.core.entry import Entry, Kind, address_units, content_id, is_same_content, link_key
from synclib.core.manifest import RECENT_COMMITS, Head, Manifest, RunRef, encode_manifest
from synclib.core.pack import PackInfo
from synclib.core.run import PackTable
from synclib.core.runfile import RunBuilder
from synclib.core.treehash import TreeHash
from synclib.engine.head_swap import ATTEMPTS, archive, put_manifest, swap_head, wait_after_conflict
from synclib.engine.host import Host
from synclib.engine.lease import Holder
from synclib.errors import Ambiguous, BoxlinkError, Conflict
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import Dataset, HeadState
from synclib.lazy.run_cache import RunCache
from synclib.lazy.run_reader import RunReader


class Laid:
    """A delta on top of one head: the run that is being built, and what the new manifest will say."""

    def __init__(
        self,
        root: str,
        head: HeadState,
        scanned_at_ns: int,
        packs: dict[bytes, PackInfo],
        *,
        keeps_addresses: bool = False,
    ) -> None:
        manifest = head.manifest
        self.address_end = manifest.address_end
        # Whether the addresses of what is laid were committed with their content. Those of a delta may be of a try on a
        # head that others have moved since: they count for nothing.
        self._keeps_addresses = keeps_addresses
        self._group_addresses: dict[bytes, int] = {}
        self.seq = manifest.seq + 1
        self.scanned_at_ns = scanned_at_ns
        self._packs = packs
        self._table = PackTable()
        # A snap is simply a run that starts at seq 1; the first publish makes one.
        level = "snap" if self.seq == 1 else "diff1"
        self.builder = RunBuilder(level, self.seq, self.seq, self._table)
        self.tree = TreeHash(manifest.tree_state, manifest.entry_count)
        self.file_count, self.plain_bytes = manifest.file_count, manifest.plain_bytes
        self.added = self.changed = self.deleted = 0
        self.overridden: list[bytes] = []

    def packs_used(self) -> set[bytes]:
        """The packs that the delta's entries name."""
        return {info.ulid for info in self._table.infos}

    @property
    def is_new(self) -> bool:
        return self.builder.entry_count > 0

    def lay(self, entry: Entry, head_chain: Chain, base_chain: Chain) -> None:
        """Add one change, unless the head says the same already."""
        old = head_chain.lookup(entry.key)
        if entry.kind == Kind.TOMBSTONE:
            if old is None:
                return
            self.deleted += 1
        elif old is None:
            self.added += 1
        elif is_same_content(old, entry):
            return
        else:
            self.changed += 1
        if base_chain is not head_chain and _differs(old, base_chain.lookup(entry.key)):
            self.overridden.append(entry.path)
        if old is not None:
            self._account(old, -1)
        if entry.kind != Kind.TOMBSTONE:
            self._account(entry, 1)
        for chunk in entry.chunks:
            if chunk.pack not in self._table:
                self._table.add(self._packs[chunk.pack])
        is_young = entry.is_racy or is_racy(entry, self.scanned_at_ns)
        address = self._place(entry, old) if entry.chunks else 0
        if is_young != entry.is_racy or address != entry.address:
            entry = msgspec.structs.replace(entry, is_racy=is_young, address=address)
        self.builder.add(entry)

    def _place(self, entry: Entry, old: Entry | None) -> int:
        """Where the content of a file is in the address space: where it was, or behind all that was ever given."""
        if self._keeps_addresses and entry.address:
            return entry.address
        if old is not None and old.size == entry.size and content_id(old) == content_id(entry) and old.address:
            return old.address
        group = link_key(entry)
        if group in self._group_addresses:
            return self._group_addresses[group]
        address = self.address_end
        self.address_end += address_units(entry.size)
        if group:
            self._group_addresses[group] = address
        return address

    def _account(self, entry: Entry, sign: int) -> None:
        if sign > 0:
            self.tree.add(entry)
        else:
            self.tree.remove(entry)
        self.file_count += sign * (entry.kind == Kind.FILE)
        self.plain_bytes += sign * entry.size


def _differs(first: Entry | None, second: Entry | None) -> bool:
    if first is None or second is None:
        return first is not second
    return not is_same_content(first, second)


@dataclass(frozen=True)
class Committed:
    """A head that holds the delta, the delta as it was laid, and its run; no run when it came to nothing.

    The run need not be the head's newest: others may have published since.
    """

    head: HeadState
    laid: Laid
    run: RunRef | None


class Commit:
    """Commits a laid delta; on a lost race lays it on the new head and tries again."""

    def __init__(
        self, dataset: Dataset, host: Host, intent: Holder, cache: RunCache, packs: dict[bytes, PackInfo]
    ) -> None:
        self._dataset, self._host, self._intent, self._cache, self._packs = dataset, host, intent, cache, packs
        # The delta as it was first laid: what the directory is, beside its former base. In the cache.
        self.delta: RunRef | None = None
        # By commit: what may have been applied although no answer said so, now or later (I5).
        self._tried: dict[str, tuple[Laid, RunRef]] = {}

    def commit(self, head: HeadState, laid: Laid, base_chain: Chain) -> Committed:
        for attempt in range(ATTEMPTS):
            if not laid.is_new:
                return Committed(head, laid, None)
            head = self._with_room(head)
            ref, path = self._keep_run(laid)
            self._dataset.store.put(ref.key(self._dataset.root), path)
            commit = ulid_text(ulid_bytes(self._host.clock, self._host.entropy))
            self._tried[commit] = (laid, ref)
            try:
                done = Committed(self._swap(head, laid, ref, commit), laid, ref)
            except (Conflict, Ambiguous) as error:
                wait_after_conflict(self._host, attempt)
                before, head = head, self._dataset.read_head_or_empty()
                is_lost = isinstance(error, Conflict) and head.etag != before.etag
                own = self._find_own(head)
                if own is None:
                    self._intent.check_head(head)
                    laid = self._lay_kept(ref, head, laid, base_chain)
                    if is_lost and _remembers(head, before):
                        # Only then: a write whose answer was lost may still be under way, and a head that has been
                        # replaced often since forgets who wrote it.
                        del self._tried[commit]
                        self._dataset.store.delete(ref.key(self._dataset.root))
                    continue
                done = own
            if done.head.manifest.seq == 1:
                self._put_first(done.head)
            return done
        raise Conflict(
            f"{self._dataset.name} changes faster than this can be committed", hint="publish again when others are done"
        )

    def _with_room(self, head: HeadState) -> HeadState:
        """The head as it is when its former manifests are objects. Where others have moved it meanwhile it is still the
        one that they have replaced."""
        if not head.head.is_full:
            return head
        done = archive(self._dataset, self._host, head)
        return done if done is not None and done.head.manifest == head.head.manifest else head

    def _put_first(self, head: HeadState) -> None:
        """Make the first manifest an object: by one a dataset whose head is lost differs from one that never was. Our
        intent holds all that it names. If it fails now, a collector does it."""
        with contextlib.suppress(BoxlinkError):
            put_manifest(self._dataset, head.head.manifest)

    def _find_own(self, head: HeadState) -> Committed | None:
        """The try of ours that a head holds, whichever it was and whoever came after it."""
        for commit in head.head.commits:
            if commit in self._tried:
                return Committed(head, *self._tried[commit])
        return None

    def lay_again(self, laid: Laid, head: HeadState, base_chain: Chain) -> Laid:
        """A delta that was laid on its base, laid on a head that others have moved."""
        if not laid.is_new:
            return laid
        ref, _ = self._keep_run(laid)
        return self._lay_kept(ref, head, laid, base_chain)

    def _keep_run(self, laid: Laid) -> tuple[RunRef, Path]:
        clock = self._host.clock
        parts = laid.builder.finish()
        ref = parts.ref(self._intent.mint(), clock.wall_ns())
        path = self._cache.keep(ref.key(self._dataset.root), parts.read())
        parts.close()
        self.delta = self.delta or ref
        return ref, path

    def _swap(self, head: HeadState, laid: Laid, ref: RunRef, commit: str) -> HeadState:
        """The new head. Conflict when another was there first, Ambiguous when the answer was lost."""
        manifest = manifest_of(head, laid, ref, self._host)
        new = head_with(head, manifest, laid)
        self._intent.check_head(head)
        return swap_head(self._dataset, head, new, commit)

    def _lay_kept(self, ref: RunRef, head: HeadState, laid: Laid, base_chain: Chain) -> Laid:
        """The delta laid on another head. The whole delta: what the head of the last try said already, and so is not in
        that try's run ``ref``, may be gone again."""
        assert self.delta is not None
        own = RunReader(self._cache, self._dataset.root, self.delta)
        chain = Chain.of(self._cache, self._dataset.root, head.manifest.runs)
        for run in chain.runs:
            self._packs.update((row[0], PackInfo(*row)) for row in run.tail.packs)
        again = Laid(self._dataset.root, head, laid.scanned_at_ns, self._packs)
        lay_run(own, again, chain, base_chain)
        if ref is not self.delta:
            self._cache.drop(ref.key(self._dataset.root))
        return again


def head_with(head: HeadState, manifest: Manifest, laid: Laid) -> Head:
    """The head with a new manifest. What a collector condemned while an intent held it, and is used now, is spared."""
    used = laid.packs_used()
    condemned = [name for name in head.head.condemned if name not in used]
    return msgspec.structs.replace(head.head, manifest=encode_manifest(manifest), condemned=condemned)


def manifest_of(head: HeadState, laid: Laid, ref: RunRef, host: Host) -> Manifest:
    """The manifest of a head with one run more."""
    return Manifest(
        laid.seq,
        laid.tree.state_bytes(),
        laid.tree.count,
        laid.file_count,
        laid.plain_bytes,
        [*head.manifest.runs, ref],
        head.manifest.attachments,  # of runs that it has still
        max(host.clock.wall_ns(), head.manifest.published_at_ns + 1),
        host.node,
        blake3(head.head.manifest).digest() if head.etag else b"",
        laid.address_end,
    )


def lay_run(own: RunReader, laid: Laid, head_chain: Chain, base_chain: Chain) -> None:
    """Lay the entries of a run on a head that others have moved, so that the tree stays a tree.

    Later wins on the same path. A directory that the head no longer has comes back when something of ours lies in it;
    one of ours that is gone stays when others have put something into it; what others put below a path that is no
    directory now, goes.
    """
    repairs: dict[bytes, Entry | None] = {}
    for entry in own.entries():
        _repair_ancestors(entry, own, head_chain, repairs)
        if entry.kind == Kind.TOMBSTONE:
            if _keeps_others(entry, own, head_chain, repairs):
                repairs[entry.key] = None
        elif entry.kind != Kind.DIRECTORY:
            for below in head_chain.below(entry.path, with_hashes=False):
                repairs[below.key] = Entry(below.directory, below.name, Kind.TOMBSTONE)
    pending = sorted((entry for entry in repairs.values() if entry is not None), key=lambda entry: entry.key)
    extra = iter(pending)
    following = next(extra, None)
    for entry in own.entries():
        while following is not None and following.key < entry.key:
            laid.lay(following, head_chain, base_chain)
            following = next(extra, None)
        if following is not None and following.key == entry.key:
            following = next(extra, None)
        if not (entry.key in repairs and repairs[entry.key] is None):
            laid.lay(entry, head_chain, base_chain)
    while following is not None:
        laid.lay(following, head_chain, base_chain)
        following = next(extra, None)


def _repair_ancestors(entry: Entry, own: RunReader, head_chain: Chain, repairs: dict[bytes, Entry | None]) -> None:
    """A path that we put needs its directories; the head may have lost them."""
    directory = entry.directory
    while directory and entry.kind != Kind.TOMBSTONE:
        parent, name = names.split_path(directory)
        key = names.sort_key(parent, name)
        ours = own.lookup(key)
        if ours is None:
            theirs = head_chain.lookup(key)
            if theirs is None or theirs.kind != Kind.DIRECTORY:
                repairs[key] = Entry(parent, name, Kind.DIRECTORY, 0o755)
        directory = parent


def _keeps_others(entry: Entry, own: RunReader, head_chain: Chain, repairs: dict[bytes, Entry | None]) -> bool:
    """Whether a directory that we delete holds, at the head, something that goes neither by us nor by a repair."""
    for other in head_chain.below(entry.path, with_hashes=False):
        repair = repairs.get(other.key)
        if own.lookup(other.key) is None and (repair is None or repair.kind != Kind.TOMBSTONE):
            return True
    return False


def _remembers(head: HeadState, before: HeadState) -> bool:
    """Whether a head names all who have written since another one was read."""
    if not before.head.commits:
        return len(head.head.commits) < RECENT_COMMITS
    return before.head.commits[-1] in head.head.commits
