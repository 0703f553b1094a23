"""Snapshots in memory, stricter than any service: asynchronous, with spent tokens, and every call can be the last."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synclib.errors import Conflict, Invalid, Missing
from synclib.volume.base import BLOCK_BYTES, GIB, Snapshot, SnapshotState, Volume

_DESCRIBES_UNTIL_COMPLETED = 3


class Killed(BaseException):
    """What a kill does: nothing that comes after is done."""


class MemoryDriver:
    """Of :class:`VolumeDriver` what direct snapshots need, and its :class:`SnapshotBlocks`.

    ``dies_at``: the number of the call that changes something which is the last one; ``is_applied``: whether it was
    carried out before.
    """

    name = "memory"
    why_copies = ""
    puts_per_s = 1000.0

    def __init__(self) -> None:
        self.held: dict[str, Snapshot] = {}
        self.own: dict[str, dict[int, bytes]] = {}  # the blocks that were put
        self.tokens: dict[str, tuple[str, object]] = {}
        self.completing: dict[str, int] = {}
        self.calls: list[str] = []
        self.puts: list[int] = []
        self.dies_at: int | None = None
        self.is_applied = False
        self._lock = threading.Lock()

    def _changing(self, what: str, *, is_done: bool) -> None:
        if not is_done:
            self.calls.append(what)
        if self.dies_at is not None and (
            len(self.calls) > self.dies_at or (len(self.calls) == self.dies_at and self.is_applied == is_done)
        ):
            raise Killed(what)

    # VolumeDriver

    def blocks(self) -> MemoryDriver:
        return self

    def snapshots(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Snapshot]:
        with self._lock:
            for name, left in list(self.completing.items()):
                self.completing[name] = left - 1
                if left <= 1:
                    del self.completing[name]
                    self.held[name] = replace(self.held[name], state=SnapshotState.COMPLETED, progress=100)
            wanted = set((tags or {}).items())
            return [
                found for found in self.held.values() if (not ids or found.id in ids) and wanted <= found.tags.items()
            ]

    def tag(self, resource_id: str, tags: Mapping[str, str]) -> None:
        with self._lock:
            self._changing("tag", is_done=False)
            found = self._held(resource_id)
            self.held[resource_id] = replace(found, tags={**found.tags, **tags})
            self._changing("tag", is_done=True)

    def delete_snapshot(self, snapshot_id: str) -> None:
        with self._lock:
            self._changing("delete", is_done=False)
            self.held.pop(snapshot_id, None)
            self._changing("delete", is_done=True)

    def volumes(self, ids: Sequence[str] = (), tags: Mapping[str, str] | None = None) -> list[Volume]:
        return []

    def device(self, volume: Volume) -> Path:
        raise Missing("there are no volumes")

    # SnapshotBlocks

    def start(self, *, size_gib: int, parent_id: str, token: str, tags: Mapping[str, str]) -> Snapshot:
        with self._lock:
            self._changing("start", is_done=False)
            asked = (size_gib, parent_id, dict(tags))
            if token in self.tokens:
                name, before = self.tokens[token]
                if before != asked:
                    raise Conflict("the same token with other arguments")
                return self.held.get(name, Snapshot(name, size_gib, SnapshotState.PENDING, 0))
            if parent_id:
                parent = self._held(parent_id)
                if parent.state is not SnapshotState.COMPLETED or size_gib < parent.size_gib:
                    raise Invalid("no such parent")
            name = f"snap-{len(self.tokens):017x}"
            self.tokens[token] = (name, asked)
            began = Snapshot(name, size_gib, SnapshotState.PENDING, len(self.tokens), parent_id, tags=dict(tags))
            self.held[name], self.own[name] = began, {}
            self._changing("start", is_done=True)
            return began

    def put(self, snapshot_id: str, index: int, data: bytes | memoryview) -> bytes:
        with self._lock:
            self._changing("put", is_done=False)
            found = self._held(snapshot_id)
            if found.state is not SnapshotState.PENDING or snapshot_id in self.completing:
                raise Conflict("it takes no further block")
            if len(data) != BLOCK_BYTES or not 0 <= index < found.size_gib * GIB // BLOCK_BYTES:
                raise Invalid("no such block")
            self.own[snapshot_id][index] = bytes(data)
            self.puts.append(index)
            self._changing("put", is_done=True)
            return hashlib.sha256(data).digest()

    def complete(self, snapshot_id: str, *, changed_count: int, checksum: bytes) -> None:
        with self._lock:
            self._changing("complete", is_done=False)
            found = self._held(snapshot_id)
            if found.state is not SnapshotState.PENDING or snapshot_id in self.completing:
                raise Conflict("it is complete")
            own = self.own[snapshot_id]
            linear = hashlib.sha256(b"".join(hashlib.sha256(own[index]).digest() for index in sorted(own))).digest()
            if (changed_count, checksum) == (len(own), linear):
                self.completing[snapshot_id] = _DESCRIBES_UNTIL_COMPLETED
            else:
                self.held[snapshot_id] = replace(found, state=SnapshotState.ERROR)
            self._changing("complete", is_done=True)

    def written(self, snapshot_id: str) -> Iterator[int]:
        return iter(sorted({index for name in self._lineage(snapshot_id) for index in self.own[name]}))

    def changed(self, first_id: str, second_id: str) -> Iterator[int]:
        if first_id not in self._lineage(second_id):
            raise Invalid("unrelated")
        every = sorted({*self.written(first_id), *self.written(second_id)})
        return (index for index in every if self.get(first_id, index) != self.get(second_id, index))

    def get(self, snapshot_id: str, index: int) -> bytes:
        if self._held(snapshot_id).state is not SnapshotState.COMPLETED:
            raise Conflict("it is not complete")
        for name in self._lineage(snapshot_id):
            if index in self.own[name]:
                return self.own[name][index]
        return bytes(BLOCK_BYTES)

    def _lineage(self, snapshot_id: str) -> list[str]:
        """It and what it was made upon, the newest first; deleted ones too, whose blocks stay with later ones."""
        found = [snapshot_id]
        while parent := next(asked[1] for name, asked in self.tokens.values() if name == found[-1]):  # type: ignore[index]
            found.append(parent)
        return found

    def _held(self, snapshot_id: str) -> Snapshot:
        if snapshot_id not in self.held:
            raise Missing("there is no such snapshot")
        return self.held[snapshot_id]
