"""What a directory was last published as or restored to, by real path and dataset: its base.

The base is a list of runs. When others published in between, it is not the chain of one seq, but the older base with
this directory's own deltas upon it: exactly what the directory holds, so that the next publish sees only its changes.
A delta that is no run of the store, because it was laid on another head, is kept here.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.core.frame import DECODE_ERRORS
from synclib.core.manifest import RunRef
from synclib.disk.atomic import write_atomic


class Base(msgspec.Struct, frozen=True):
    store: str
    root: str
    directory: str
    prefix: str
    seq: int
    digest: str
    runs: list[RunRef]
    is_whole: bool = False  # whether the directory was exactly that seq: no others' changes are missing


class BaseFile:
    """The base record of one directory in the state directory."""

    def __init__(self, state: Path, store_url: str, root: str, directory: bytes, prefix: bytes = b"") -> None:
        self._identity = (store_url, root, os.path.realpath(directory), prefix)
        parts = (store_url.encode(), root.encode(), self._identity[2], prefix)
        name = blake3(b"\0".join(parts)).hexdigest(16)
        self._path = state / "base" / f"{name}.json"
        self.runs = state / "base" / name  # runs that only this directory has, by file name
        self.stat_cache = state / "base" / f"{name}.stat"  # disk/stat_cache.py

    def read(self) -> Base | None:
        """The base, or None where there is none that can be read: then the head is taken instead."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Base)
        except (FileNotFoundError, *DECODE_ERRORS):
            return None

    def of_other_stores(self) -> list[Base]:
        """What this directory exactly was by publishes and restores with other stores, the newest seq first."""
        _, root, directory, prefix = self._identity
        wanted = (root, repr(directory), repr(prefix))
        found: list[Base] = []
        for path in self._path.parent.glob("*.json"):
            try:
                base = msgspec.json.decode(path.read_bytes(), type=Base)
            except (FileNotFoundError, *DECODE_ERRORS):
                continue
            if path != self._path and (base.root, base.directory, base.prefix) == wanted and base.is_whole:
                found.append(base)
        return sorted(found, key=lambda base: base.seq, reverse=True)

    def write(self, seq: int, digest: str, runs: list[RunRef], *, is_whole: bool) -> None:
        url, root, directory, prefix = self._identity
        base = Base(url, root, repr(directory), repr(prefix), seq, digest, runs, is_whole)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, msgspec.json.encode(base))

    def keep(self, run: RunRef, path: Path) -> None:
        """Keep a run of the base, a copy of which is at ``path``: as a further name of it, else not at all (the store
        has it)."""
        with contextlib.suppress(OSError):
            self.runs.mkdir(parents=True, exist_ok=True)
            os.link(path, self.runs / run.file_name)

    def prune(self, runs: list[RunRef]) -> None:
        """Remove own runs that the base no longer names."""
        wanted = {run.file_name for run in runs}
        if self.runs.is_dir():
            for path in self.runs.iterdir():
                if path.name not in wanted:
                    path.unlink()
