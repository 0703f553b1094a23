"""What a restore is asked to do: one value that its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synclib.core.manifest import Manifest
from synclib.engine.host import Connect, Host, Progress
from synclib.lazy.dataset import Dataset


@dataclass(frozen=True)
class RestoreOptions:
    path: bytes = b""  # only this file or folder
    is_delete: bool = False  # remove what the dataset does not have
    is_dry_run: bool = False
    is_full: bool = True  # look at every path; else only at what the chain changed since
    is_durable: bool = False  # flush all to the disk before saying that it is done; else the next restore may check
    before_change: Callable[[], None] = lambda: None  # called once, before the first change to what stands here
    seeds: tuple[bytes, ...] = ()  # directories that may hold the same files or packs: read first, and verified
    first: tuple[bytes, ...] = ()  # where nothing stands yet: paths of files that are made before all others


@dataclass(frozen=True)
class RestoreTask:
    """Bring ``directory`` to ``manifest``. ``connect``: how worker processes reach the store; None: there are none."""

    dataset: Dataset
    manifest: Manifest
    connect: Connect | None
    directory: Path
    host: Host
    options: RestoreOptions
    progress: Progress
