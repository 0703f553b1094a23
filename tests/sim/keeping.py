"""I3 in the model: what must not be deleted, and what a collector may condemn, for whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from synclib.clock import ulid_from_text
from synclib.core.manifest import Head
from synclib.core.retention import Retention, kept_seqs
from tests.sim.claims import Claims
from tests.sim.scheduler import Violation

_ULID_LENGTH = 26


@dataclass(frozen=True, eq=False)
class Version:
    """A manifest of a seq; a compaction makes a further one."""

    seq: int
    id: bytes
    key: str
    published_at_ns: int
    needs: dict[str, bytes]  # the keys of its runs and of the packs that live entries lead to, and their ids

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.needs)

    @property
    def ids(self) -> set[bytes]:
        return {self.id, *self.needs.values()}


@dataclass
class Keeping:
    """A seq is alive while a manifest of it stands of which nothing is condemned. It must stay so until somebody's
    collection does not keep it; then it must be gone for good."""

    present: set[str] = field(default_factory=set)  # runs, packs and manifests in the store
    stands: dict[str, Version] = field(default_factory=dict)  # the manifests among them
    alive: dict[bytes, Version] = field(default_factory=dict)
    condemned: set[bytes] = field(default_factory=set)
    tagged: dict[str, int] = field(default_factory=dict)  # tags of which somebody was told that they stand
    late: set[bytes] = field(default_factory=set)  # manifests written when what they name was gone or going
    late_count: int = 0
    head: Version | None = None
    claims: Claims = field(default_factory=Claims)
    _keys: dict[bytes, str] = field(default_factory=dict)  # of every id that there ever was

    def put(self, key: str, version: Version | None, *, may_lack: bool) -> None:
        """``may_lack``: a manifest that comes late, as nobody can prevent; no collection may stumble over it."""
        self.present.add(key)
        self._keys[version.id if version is not None else ulid_from_text(key[-_ULID_LENGTH:])] = key
        if version is None:
            return
        self.stands[key] = version
        lacking = version.keys - self.present
        if may_lack and (lacking or version.ids & self.condemned):
            self.late.add(version.id)
            self.late_count += 1
        elif lacking:
            raise Violation(f"I3: a manifest of seq {version.seq} was written, but {min(lacking)} is not there")

    def is_alive(self, seq: int) -> bool:
        return any(version.seq == seq for version in self.alive.values())

    def delete(self, actor: str, key: str, now: float, *, is_collected: bool) -> None:
        self.present.discard(key)
        gone = self.stands.pop(key, None)
        if self.head is not None and key in self.head.needs:
            raise Violation(f"I3: {key} was deleted, but the head needs it")
        for version in self.alive.values():
            if key == version.key and version is self.head:
                # Whoever replaces the head writes it again.
                continue
            if key == version.key or key in version.needs:
                raise Violation(f"I3: {key} was deleted, but seq {version.seq} needs it")
        for version in self.stands.values():
            if key in version.needs and version.id not in self.late:
                raise Violation(f"I3: {key} was deleted before the manifest of seq {version.seq} that names it")
        self.claims.check_delete(actor, key, is_manifest=gone is not None, is_collected=is_collected, now=now)

    def replace(
        self, actor: str, retention: Retention | None, head: Head, version: Version, more: Sequence[Version]
    ) -> None:
        """A head is replaced."""
        condemned = set(head.condemned)
        if version.ids & condemned:
            raise Violation(f"I3: what the head of seq {version.seq} needs is condemned")
        taken_off = {self._key_of(name) for name in self.condemned - condemned - version.ids}
        # A replication may spare all that it copies.
        is_sparing = bool(more) and retention is None
        if (still := taken_off & self.present) and not is_sparing:
            raise Violation(f"I3: {min(still)} is there, but no longer condemned")
        listed = list(self._listed())
        self.condemned, new = condemned, condemned - self.condemned
        if self.head is None or self.head.id != version.id:
            self.alive[version.id] = version
        for found in more:
            if found.key in self.present and not found.ids & condemned and found.keys <= self.present:
                self.alive.setdefault(found.id, found)
                self.late.discard(found.id)
        self.head = version
        if new:
            self._condemn(actor, retention, new, listed)

    def _condemn(self, actor: str, retention: Retention | None, new: set[bytes], listed: list[Version]) -> None:
        if retention is None:
            raise Violation(f"I3: {actor} condemns, but does not collect")
        before = {version.seq for version in self.alive.values()}
        # What a collector may find besides, late writes of what was dropped before, only makes it keep less of these.
        times = {(version.seq, version.published_at_ns) for version in [*self.alive.values(), *listed]}
        dropped = [version for version in self.alive.values() if version.ids & new]
        for version in dropped:
            del self.alive[version.id]
        lost = before - {version.seq for version in self.alive.values()}
        if retention.keeps_all:
            lost = {version.seq for version in dropped}
        assert self.head is not None
        must = kept_seqs(times, retention) | {self.head.seq, *self.tagged.values()}
        if wrong := lost & must:
            raise Violation(f"I3: seq {min(wrong)} is kept, but {actor} condemns what it needs")

    def _listed(self) -> Iterator[Version]:
        return (version for version in self.stands.values() if version.id not in self.condemned)

    def _key_of(self, name: bytes) -> str:
        """The key of a run, pack or manifest that is there."""
        return self._keys.get(name, "")
