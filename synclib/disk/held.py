"""What a restored directory knows of itself: ``.boxlink`` at its top.

state.json             the seq that stands here, its runs, and a restore that has begun
lock                   held by the restore that is at work; its bytes are that restore's fence
writers                held, shared, by each of its worker processes while it writes
manifest/<seq>-<…>     the manifests of the newest seqs that stood here
run/<ulid>             their runs: names, sizes and hashes without asking the store
tmp/                   files being written
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from synclib.clock import Clock
from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import Manifest, RunRef, decode_manifest, encode_manifest, manifest_digest
from synclib.core.names import STATE_DIRECTORY
from synclib.disk.atomic import TEMPORARY, write_atomic
from synclib.errors import Conflict, Corrupt, Fenced, Invalid, Missing

_MANIFESTS_KEPT = 3
_LOCK, _WRITERS = "lock", "writers"
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
# A worker writes at most one range's bytes before it looks again.
_WRITERS_TIMEOUT_S = 60.0


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
            return msgspec.json.decode(_read_file(self._state), type=State)
        except (FileNotFoundError, NotADirectoryError, *DECODE_ERRORS):
            return None

    def is_part(self) -> bool:
        """Whether something was restored here, but never a whole seq."""
        return self.directory.is_dir() and self.read() is None

    def write(self, state: State) -> None:
        self.directory.mkdir(exist_ok=True)
        write_atomic(self._state, msgspec.json.encode(state))

    def keep_manifest(self, manifest: Manifest) -> None:
        """Remember a seq that stands here; of those that stood here before, the oldest are forgotten."""
        self._manifests.mkdir(parents=True, exist_ok=True)
        data = encode_manifest(manifest)
        own = self._manifests / f"{manifest.seq:020}-{manifest_digest(data)}"
        write_atomic(own, data)
        for path in self._manifests.glob(f"*{TEMPORARY}"):
            # What a killed writer left: who writes here holds the lock.
            path.unlink()
        # An older seq may be asked for by name: of the one that stands here nothing is forgotten.
        others = sorted(path for path in self._manifests.iterdir() if path != own)
        for path in others[: 1 - _MANIFESTS_KEPT]:
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
        """A descriptor that holds the lock until it is closed; Conflict when another process is at work here.

        Invalid where a symlink stands in place of one of our directories: nothing is written through it (I9).
        """
        for directory in (self.directory, self.runs, self._manifests):
            if directory.is_symlink():
                raise Invalid(f"{directory} is a symlink", hint="remove it: boxlink makes a directory of its own")
        self.directory.mkdir(exist_ok=True)
        descriptor = os.open(self.directory / _LOCK, _LOCK_FLAGS, 0o644)
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            raise Conflict(f"another process is restoring into {self.directory.parent}", hint="wait until it is done")
        return descriptor

    def fence(self, lock: int, token: bytes, clock: Clock) -> None:
        """Shut out the workers of a restore that was killed; ``lock`` is held. Conflict when one will not end.

        A worker that is writing now is waited for. One that comes later finds ``token`` in place of its own, and ends.
        """
        os.pwrite(lock, token, 0)
        descriptor = os.open(self.directory / _WRITERS, _LOCK_FLAGS, 0o644)
        try:
            deadline = clock.monotonic() + _WRITERS_TIMEOUT_S
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if clock.monotonic() > deadline:
                    raise Conflict(
                        f"a worker process of a killed restore still writes into {self.directory.parent}",
                        hint="end that process",
                    )
                clock.sleep(0.02)
        finally:
            os.close(descriptor)


def _read_file(path: Path) -> bytes:
    """A file's bytes; of a pipe that stands in its place nothing, at once."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read()


@contextlib.contextmanager
def writing(top: bytes, token: bytes) -> Iterator[None]:
    """For a worker process: nobody else restores into ``top`` meanwhile. Fenced when another restore has begun."""
    state = os.path.join(top, STATE_DIRECTORY.encode())
    writers = os.open(os.path.join(state, _WRITERS.encode()), _LOCK_FLAGS, 0o644)
    try:
        fcntl.flock(writers, fcntl.LOCK_SH)
        lock = os.open(os.path.join(state, _LOCK.encode()), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            found = os.pread(lock, len(token), 0)
        finally:
            os.close(lock)
        if found != token:
            raise Fenced("another restore has begun here")
        yield
    finally:
        os.close(writers)


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def boot_id() -> str:
    """Another after each start of the machine (proc(5), /proc/sys/kernel/random/boot_id). Asked for once a file."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
