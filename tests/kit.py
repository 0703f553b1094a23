"""Small tools of the engine's tests: a host, a dataset, trees written from and read into plain values."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from synclib.clock import SeededEntropy, SystemClock
from synclib.core.names import dataset_root, is_reserved
from synclib.engine.host import Connect, Host, no_progress
from synclib.engine.publish import PublishOptions, PublishResult, publish
from synclib.engine.restore import RestoreOptions, RestoreResult, restore
from synclib.engine.verify import VerifyOptions, VerifyResult, verify
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.base import Store
from synclib.store.memory import MemoryStore

# path -> what is there: bytes of a file, ("link", target), or None for a directory.
Content = dict[bytes, bytes | tuple[str, bytes] | None]


class PatientClock(SystemClock):
    """The system's clock, but that nobody waits."""

    def sleep(self, seconds: float) -> None:
        """At once."""


class Kit:
    """One machine with one dataset in one store."""

    def __init__(
        self, place: Path, store: Store | None = None, *, seed: int = 1, connect: Connect | None = None
    ) -> None:
        self.place = place
        self.store: Store = store if store is not None else MemoryStore()
        if store is None:
            self.store.put(STORE_KEY, b"{}")
        self.connect = connect
        self.host = Host("n1", PatientClock(), SeededEntropy(seed), place / "state", place / "cache")
        self.dataset = Dataset(self.store, dataset_root("covers"))
        self.directory = place / "source"
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, content: Content, directory: Path | None = None) -> None:
        """Make a directory hold exactly ``content``; files that are the same already are not touched."""
        top = directory or self.directory
        for path, value in sorted(read_tree(top).items(), reverse=True):
            if path not in content or _kind(content[path]) != _kind(value):
                full = os.path.join(os.fsencode(top), path)
                if os.path.isdir(full) and not os.path.islink(full):
                    os.rmdir(full)
                else:
                    os.unlink(full)
        there = read_tree(top)
        for path, value in sorted(content.items()):
            if path in there and there[path] == value:
                continue
            put(top, path, value)

    def publish(self, directory: Path | None = None, **options: object) -> PublishResult:
        chosen = os.fsencode(directory or self.directory)
        return publish(self.dataset, self.connect, chosen, self.host, PublishOptions(**options), no_progress)  # type: ignore[arg-type]

    def restore(self, target: Path, seq: int | None = None, **options: object) -> RestoreResult:
        manifest = self.dataset.manifest_at(seq)
        return restore(
            self.dataset,
            manifest,
            self.connect,
            target,
            self.host,
            RestoreOptions(**options),  # type: ignore[arg-type]
            no_progress,
        )

    def verify(self, seq: int | None = None) -> VerifyResult:
        options = VerifyOptions(is_data=True)
        return verify(self.dataset, self.dataset.manifest_at(seq), self.connect, options, no_progress)


def _kind(value: object) -> str:
    return "directory" if value is None else "file" if isinstance(value, bytes) else "link"


def put(top: Path, path: bytes, value: bytes | tuple[str, bytes] | None) -> None:
    """Put one thing at a path, replacing a file or link that is there."""
    full = os.path.join(os.fsencode(top), path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    if value is None:
        os.makedirs(full, exist_ok=True)
    elif isinstance(value, bytes):
        if os.path.islink(full):
            os.unlink(full)
        with open(full, "wb") as file:
            file.write(value)
    else:
        if os.path.lexists(full):
            os.unlink(full)
        os.symlink(value[1], full)


def read_tree(top: Path) -> Content:
    """What a directory holds, markers and state apart."""
    found: Content = {}
    base = os.fsencode(top)
    pending = [b""]
    while pending:
        directory = pending.pop()
        for item in os.scandir(os.path.join(base, directory) if directory else base):
            if is_reserved(directory, item.name):
                continue
            path = os.path.join(directory, item.name)
            if item.is_symlink():
                found[path] = ("link", os.readlink(item.path))
            elif item.is_dir():
                found[path] = None
                pending.append(path)
            else:
                found[path] = Path(os.fsdecode(item.path)).read_bytes()
    return found


def metadata(top: Path) -> dict[bytes, tuple[int, int]]:
    """(mode, mtime in ns; 0 for directories) of everything in a directory."""
    found = {}
    for path in read_tree(top):
        status = os.lstat(os.path.join(os.fsencode(top), path))
        is_directory = stat.S_ISDIR(status.st_mode)
        found[path] = (stat.S_IMODE(status.st_mode), 0 if is_directory else status.st_mtime_ns)
    return found
