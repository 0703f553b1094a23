"""Collection in two phases (I3): condemn in the head, then sweep what still nothing holds.

What is condemned is what no kept seq reaches and no session at work has uploaded. It is written into the head by
compare-and-swap, which raises the head's epoch; leases are looked at again only after that. Whoever takes a lease
re-reads the head afterwards, and starts anew when the epoch has moved: of the two, one always sees the other. A tag is
set by a compare-and-swap of the head, so nothing that has one is ever condemned.

What was condemned stays so until it is gone, also while a lease that was there first still holds it: nobody new gets
hold of it. Only a commit of such a holder takes it off the list, and that one every sweeper has seen. What is gone
stays on the list while another collector's sweep stands (engine/sweep.py), lest a replication bring it back for that
one to delete. So a collector that was asleep, and goes on with what it found then, deletes nothing that anybody has.
Time only ends the leases of those who are silent; who commits is fenced by the same compare-and-swap.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import msgspec

from synclib.core.lease import owner_tag
from synclib.core.manifest import (
    CONDEMNED_MAX,
    Head,
    Manifest,
    former_manifests,
    manifest_digest,
    manifest_id,
)
from synclib.core.names import manifest_key
from synclib.core.retention import Retention, why_kept
from synclib.engine.head_swap import archive, update_head
from synclib.engine.host import Host, Progress
from synclib.engine.lease import Moved
from synclib.engine.leases import HeldLease, all_leases, end_expired
from synclib.engine.objects import StoredObject, list_attachments, list_manifests, list_packs, list_runs
from synclib.engine.reach import Reach, kept, kept_of
from synclib.engine.sweep import Sweep
from synclib.engine.swept import Presence, named
from synclib.engine.tags import tags
from synclib.errors import Conflict, Missing
from synclib.lazy.dataset import Dataset, HeadState

_KINDS = ("manifests", "runs", "packs", "attachments")
_ROUNDS_MAX = 10_000
_ARCHIVE_ATTEMPTS = 10
_ATTEMPTS = 10


@dataclass
class CollectResult:
    """``found`` and ``swept``: (objects, bytes) by kind. ``held``: what was condemned but is held after all."""

    seq: int = 0
    digest: str = ""
    files: int = 0
    plain_bytes: int = 0
    kept_seqs: list[int] = field(default_factory=list)
    dropped_seqs: list[int] = field(default_factory=list)  # which were there until now
    found: dict[str, tuple[int, int]] = field(default_factory=dict)
    swept: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept_by: dict[str, int] = field(default_factory=dict)  # how many of kept_seqs for which reason (why_kept)
    reached: int = 0  # objects that kept seqs reach
    held: int = 0
    waiting_for: list[str] = field(default_factory=list)  # leases, as "node (key)"
    is_ended: bool = False  # whether all of them were ended by a collector: they hold for one lease more
    next_step_ns: int = 0  # when the first of them runs out, if its holder stays silent; 0 where there is none
    is_replicating: bool = False  # a replication is at work: nothing is deleted until it is done
    sweeping: list[str] = field(default_factory=list)  # other collections, likewise, which keep the list from clearing


def collect(
    dataset: Dataset,
    host: Host,
    retention: Retention,
    executor: Executor | None,
    progress: Progress,
    *,
    is_dry_run: bool = False,
) -> CollectResult:
    """Delete what no kept seq, lease or tag reaches."""
    for _ in range(_ATTEMPTS):
        collection = _Collection(dataset, host, retention, executor, progress)
        try:
            return collection.run(is_dry_run=is_dry_run)
        except _Begun:
            continue
        finally:
            collection.sweep.end()
    raise Conflict(f"{dataset.name} is just being made", hint="run it again when that is done", dataset=dataset.name)


class _Begun(Exception):
    """The first head came meanwhile."""


class _Collection:
    def __init__(
        self, dataset: Dataset, host: Host, retention: Retention, executor: Executor | None, progress: Progress
    ) -> None:
        self._dataset, self._host, self._retention, self._progress = dataset, host, retention, progress
        self._executor = executor
        self._reach = Reach(dataset, executor)
        self._result = CollectResult()
        self.sweep = Sweep(dataset, host)
        # Listed first: the lease of whoever uploads one of these was written before it was.
        self._listed: list[StoredObject] = []
        self._seen: set[bytes] = set()  # runs and packs that were there when they were listed

    def run(self, *, is_dry_run: bool) -> CollectResult:
        dataset, result = self._dataset, self._result
        self._listed = self._list()
        if not is_dry_run:
            end_expired(dataset, self._host.clock.wall_ns())
        try:
            head = dataset.read_head()
        except Missing as error:
            if error.dataset != dataset.name:
                raise
            return self._collect_headless(is_dry_run=is_dry_run)
        if not is_dry_run:
            head = self._archive(head)
        found = self._garbage(head, is_dry_run=is_dry_run)
        result.found = _by_kind(found)
        manifest = head.manifest
        result.seq, result.digest = manifest.seq, manifest.digest
        result.files, result.plain_bytes = manifest.file_count, manifest.plain_bytes
        if not is_dry_run:
            for _ in range(_ROUNDS_MAX):
                if not self._round():
                    break
            self.sweep.look()
        return result

    def _collect_headless(self, *, is_dry_run: bool) -> CollectResult:
        """What first publishes left that never came to a head: nothing reaches it, and whoever is at work has a lease
        that was written before his first object was listed; whoever was is done when there is a head now. A replication
        that finds such objects, and would rely on them, does not begin while a sweep stands."""
        result = self._result
        if not is_dry_run:
            self.sweep.begin()
        leases = self._note(list(self._leases()))
        owners = {held.tag for held in leases}
        holds_all = result.is_replicating
        found = [item for item in self._listed if not holds_all and owner_tag(item.id) not in owners]
        result.found, result.held = _by_kind(found), len(self._listed) - len(found)
        if not is_dry_run:
            if self._dataset.read_head_or_empty().etag is not None:
                raise _Begun
            self._sweep(found)
            self.sweep.look()
            result.swept = _by_kind(found)
        return result

    def _archive(self, head: HeadState) -> HeadState:
        """Make objects of what only the head holds: no other manifest can be condemned. Also of its own, so that a
        dataset that has lost its head is never without any."""
        for _ in range(_ARCHIVE_ATTEMPTS):
            own = manifest_id(manifest_digest(head.head.manifest))
            if not head.head.former and any(item.id == own for item in list_manifests(self._dataset)):
                break
            with contextlib.suppress(Moved):
                archive(self._dataset, self._host, head)
            head = self._dataset.read_head()
        return head

    def _list(self) -> list[StoredObject]:
        found = [*list_runs(self._dataset), *list_packs(self._dataset), *list_attachments(self._dataset)]
        self._seen.update(item.id for item in found)
        return found

    def _round(self) -> bool:
        """Condemn and sweep a batch; False when nothing is left that can be swept now."""
        state = self._condemn()
        condemned = set(state.head.condemned)
        if not condemned:
            return False
        by_id = self._find(condemned)
        if condemned - by_id.keys():
            # Gone, or uploaded since we listed and condemned by another collector.
            self._listed = self._list()
            by_id = self._find(condemned)
        # Only now, when whoever takes a lease sees what is condemned.
        held = self._held(state)
        # And only then: who has given his lease back has taken what he needs off the list before.
        still = set(self._dataset.read_head().head.condemned)
        doomed = [
            item
            for item in by_id.values()
            if item.id in still
            and not held.holds_all
            and item.id not in held.reached
            and owner_tag_of(item) not in held.tags
        ]
        self._sweep(doomed)
        gone = {item.id for item in doomed}
        self._listed = [item for item in self._listed if item.id not in gone]
        self._result.swept = _sum(self._result.swept, _by_kind(doomed))
        self._result.held += len(by_id) - len(doomed)
        is_shorter = self._clear(gone | (condemned - by_id.keys()))
        return (bool(doomed) or is_shorter) and len(condemned) >= CONDEMNED_MAX // 2

    def _sweep(self, doomed: list[StoredObject]) -> None:
        """Delete, kind by kind: what names goes before what it names."""
        done = 0
        for _, group in itertools.groupby(sorted(doomed, key=lambda item: item.kind), key=lambda item: item.kind):
            items = list(group)
            for number in self.sweep.delete(items, self._executor):
                self._progress("swept", done + number, len(doomed))
            done += len(items)

    def _find(self, condemned: set[bytes]) -> dict[bytes, StoredObject]:
        return {item.id: item for item in [*list_manifests(self._dataset), *self._listed] if item.id in condemned}

    def _condemn(self) -> HeadState:
        """The head, with what is garbage now on its list, as far as there is room.

        It is replaced after our sweep was told even where the list stays as it is: whoever clears the list without
        having seen that we sweep then loses the race, or has cleared it before we read it.
        """

        def condemn(state: HeadState) -> Head | None:
            listed = set(state.head.condemned)
            room = CONDEMNED_MAX - len(listed)
            found = [item for item in self._garbage(state) if item.id not in listed]
            new = [item.id for item in found if not item.kind][:room]
            # Half the room is for manifests alone: one that came late holds what is listed, until it is listed too.
            new += [item.id for item in found if item.kind][: max(0, room - len(new) - CONDEMNED_MAX // 2)]
            if not new:
                if not listed or self.sweep.is_begun:
                    return None
                self.sweep.begin()
                return state.head
            self.sweep.begin()
            return msgspec.structs.replace(
                state.head,
                epoch=state.head.epoch + 1,
                condemned=[*state.head.condemned, *new],
                condemned_at_seq=state.manifest.seq,
            )

        return update_head(self._dataset, self._host, condemn) or self._dataset.read_head()

    def _clear(self, gone: set[bytes]) -> bool:
        """Take what is gone, or what the head reaches by a commit that was allowed to, off the list. False when nothing
        went off: what is gone stays while others sweep, looked for between the reading of a head and its replacement.
        """

        def clear(state: HeadState) -> Head | None:
            others = self.sweep.others()
            self._result.sweeping = [str(held) for held in others]
            goes = self._reach.closure([(b"", state.manifest)]) | (set() if others else gone)
            left = [name for name in state.head.condemned if name not in goes]
            return None if left == state.head.condemned else msgspec.structs.replace(state.head, condemned=left)

        return update_head(self._dataset, self._host, clear) is not None

    def _garbage(self, head: HeadState, *, is_dry_run: bool = False) -> list[StoredObject]:
        """Manifests, then runs, then packs that nothing live reaches. Those in the head stay; a dry run takes them for
        objects, as they would be."""
        leases = self._note([held for held in self._leases() if not held.lease.ended_at_ns])
        if self._result.is_replicating:
            return []
        owners = {held.tag for held in leases}
        history, tagged = self._standing(head), self._tagged()
        stays = kept(history, head, self._retention, tagged, _seqs(leases))
        while swept := self._swept_before(head, history, stays):
            left = {seq: [item for item in found if item[0] not in swept] for seq, found in history.items()}
            history = {seq: found for seq, found in left.items() if found}
            stays = kept(history, head, self._retention, tagged, _seqs(leases))
        former = former_manifests(head.head)
        manifests = {item.id: item for item in list_manifests(self._dataset)}
        if is_dry_run:
            for (name, manifest), data in zip(former, head.head.former, strict=True):
                key = manifest_key(self._dataset.root, manifest.seq, manifest_digest(data))
                manifests.setdefault(name, StoredObject(0, name, key, len(data)))
        else:
            stays += former
        kept_seqs = {manifest.seq for _, manifest in stays}
        self._result.kept_seqs = sorted(kept_seqs)
        self._result.dropped_seqs = sorted({*self._result.dropped_seqs, *history} - kept_seqs)
        by_rule = kept_of(history, self._retention)
        newest = head.manifest.seq
        self._result.kept_by = why_kept(kept_seqs, newest, by_rule, tagged, keeps_all=self._retention.keeps_all)
        reached = self._reach.closure(stays)
        unreached = [item for item in [*manifests.values(), *self._listed] if item.id not in reached]
        self._result.reached = len(manifests) + len(self._listed) - len(unreached)
        found = [item for item in unreached if not item.kind or owner_tag(item.id) not in owners]
        self._result.held = len(unreached) - len(found)
        return found

    def _standing(self, head: HeadState) -> dict[int, list[tuple[bytes, Manifest]]]:
        """The history without what is condemned already, itself or in what it reaches, and without what a replication
        that never ended put beyond the head: these are garbage too, and go before what they name."""
        condemned = set(head.head.condemned)
        left = {
            seq: [
                (name, manifest)
                for name, manifest in found
                if manifest == head.manifest
                or not condemned
                or condemned.isdisjoint(self._reach.closure([(name, manifest)], may_lack=True))
            ]
            for seq, found in self._reach.history(head).items()
            if seq <= head.manifest.seq
        }
        return {seq: found for seq, found in left.items() if found}

    def _swept_before(
        self, head: HeadState, history: dict[int, list[tuple[bytes, Manifest]]], stays: list[tuple[bytes, Manifest]]
    ) -> set[bytes]:
        """The manifests among ``stays`` that came late."""
        if named(self._reach, stays) <= self._seen:
            return set()
        # Whatever a manifest names was there before it.
        present = {item.id for item in self._list()}
        presence = Presence(self._reach, (item for found in history.values() for item in found), present)
        swept = presence.swept()
        return {name for name, manifest in stays if manifest != head.manifest and name in swept}

    def _held(self, head: HeadState) -> _Held:
        """What leases hold, also those ended lately. Not what tags name: a tag that stands was seen before anything was
        condemned, one that came since was refused or counts for nothing."""
        now_ns = self._host.clock.wall_ns()
        leases = self._note([held for held in self._leases() if held.lease.protects(now_ns)])
        history = self._reach.history(head)
        condemned = set(head.head.condemned)
        # What has come since is not on the list: nothing that it names goes before it.
        stays = [item for found in history.values() for item in found if item[0] not in condemned]
        stays += [item for seq in _seqs(leases) for item in history.get(seq, ())]
        stays += [item for item in history[head.manifest.seq] if item[1] == head.manifest]
        return _Held(
            self._reach.closure(stays, may_lack=True),
            {held.tag for held in leases},
            self._result.is_replicating,
        )

    def _note(self, leases: list[HeldLease]) -> list[HeldLease]:
        """Say in the result what is waited for."""
        result = self._result
        result.waiting_for = [str(held) for held in leases]
        result.is_ended = all(held.lease.ended_at_ns for held in leases)
        result.is_replicating = any(held.lease.holds_all for held in leases)
        result.next_step_ns = min((held.lease.next_step_ns for held in leases), default=0)
        return leases

    def _tagged(self) -> set[int]:
        return {tag.seq for tag in tags(self._dataset).values()}

    def _leases(self) -> Iterator[HeldLease]:
        return (held for held in all_leases(self._dataset) if not held.lease.is_sweep)


@dataclass(frozen=True)
class _Held:
    reached: set[bytes]
    tags: set[bytes]
    holds_all: bool


def owner_tag_of(item: StoredObject) -> bytes:
    """The owner tag of a run or pack; none of a manifest, whose name is its digest."""
    return owner_tag(item.id) if item.kind else b""


def _seqs(leases: list[HeldLease]) -> set[int]:
    return {seq for held in leases for seq in held.lease.seqs}


def _by_kind(items: list[StoredObject]) -> dict[str, tuple[int, int]]:
    return {
        name: (
            sum(item.kind == kind for item in items),
            sum(item.size for item in items if item.kind == kind),
        )
        for kind, name in enumerate(_KINDS)
    }


def _sum(first: dict[str, tuple[int, int]], second: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {
        name: (first.get(name, (0, 0))[0] + second[name][0], first.get(name, (0, 0))[1] + second[name][1])
        for name in second
    }
