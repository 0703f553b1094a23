"""What a restored directory knows of itself: ``.boxlink`` at its top.

state.json             the seq that stands here, its runs, and a restore that has begun
lock                   held by the restore that is at work
manifest/<seq>-<…>     the manifests of the newest seqs that stood here
run/<ulid>             their runs: names, sizes and hashes without asking the store
tmp/                   files being written
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from synclib.core.manifest import Manifest, RunRef, decode_manifest, encode_manifest, manifest_digest
from synclib.core.names import STATE_DIRECTORY
from synclib.disk.atomic import TEMPORARY, write_atomic
from synclib.errors import Conflict, Corrupt, Missing

_MANIFESTS_KEPT = 3


class Restoring(msgspec.Struct, frozen=True):
    """Restores that have begun and not ended. Files they placed have a change time of at least ``started_at_ns``, and
    are whole unless the machine itself went down meanwhile (``boot_id``)."""

    targets: list[list[RunRef]]  # the chains they were to bring here, the one at work last
    started_at_ns: int
    boot_id: str


class Unsynced(msgspec.Struct, frozen=True):
    """Files that were placed and perhaps never reached the disk: those with a change time of at least ``since_ns`` are
    believed only while the machine has not started anew."""

    since_ns: int
    boot_id: str


class State(msgspec.Struct, frozen=True):
    store: str
    root: str
    seq: int  # 0: none stands here yet
    digest: str
    runs: list[RunRef]
    restoring: Restoring | None = None
    unsynced: Unsynced | None = None
    v: int = 1


class Held:
    """The ``.boxlink`` of one directory."""

    def __init__(self, top: Path) -> None:
        self.directory = top / STATE_DIRECTORY
        self.runs = self.directory / "run"
        self._state = self.directory / "state.json"
        self._manifests = self.directory / "manifest"

    def read(self) -> State | None:
        """The state, or None where there is none that can be read: then nothing here is believed unread."""
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            return None

    def write(self, state: State) -> None:
        self.directory.mkdir(exist_ok=True)
        write_atomic(self._state, msgspec.json.encode(state))

    def keep_manifest(self, manifest: Manifest) -> None:
        """Remember a seq that stands here; the oldest remembered ones are forgotten."""
        self._manifests.mkdir(parents=True, exist_ok=True)
        data = encode_manifest(manifest)
        write_atomic(self._manifests / f"{manifest.seq:020}-{manifest_digest(data)}", data)
        for path in self._manifests.glob(f"*{TEMPORARY}"):
            # What a killed writer left: who writes here holds the lock.
            path.unlink()
        for path in sorted(self._manifests.iterdir())[:-_MANIFESTS_KEPT]:
            path.unlink()

    def manifest(self, seq: int) -> Manifest:
        """The manifest of a seq that stood here lately; Missing for others."""
        for path in sorted(self._manifests.glob(f"{seq:020}-*"), reverse=True):
            try:
                return decode_manifest(path.read_bytes(), path.name.partition("-")[2])
            except (Corrupt, FileNotFoundError):
                continue
        raise Missing(f"seq {seq} is not remembered in {self.directory}")

    def kept_runs(self) -> Iterable[RunRef]:
        """The runs of all manifests that are remembered."""
        for path in self._manifests.glob("*-*"):
            yield from decode_manifest(path.read_bytes()).runs

    def lock(self) -> int:
        """A descriptor that holds the lock until it is closed; Conflict when another process is at work here."""
        self.directory.mkdir(exist_ok=True)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise Conflict(
                f"another process is restoring into {self.directory.parent}", hint="wait until it is done"
            ) from error
        return descriptor


def boot_id() -> str:
    """Another after each start of the machine (proc(5), /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
