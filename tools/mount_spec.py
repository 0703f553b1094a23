"""What a mount's processes are told: one JSON file in the mount's own directory, which is also how they are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from synclib.core.frame import DECODE_ERRORS
from synclib.core.names import STATE_DIRECTORY
from synclib.engine.cache_work import Background
from synclib.engine.mount import Prepared


class MountSpec(msgspec.Struct, frozen=True):
    """``target``: where the dataset is mounted, a real path; ``put_on``: where what is mounted there is read, since it
    was put in the place of another seq. ``order``: of those of one place, the highest was put there last. Nothing in it
    is secret."""

    store: str
    s3: dict[str, str | None]
    node: str
    state: str
    cache: str
    target: str
    prepared: Prepared
    keeper_pid: int = 0
    background: Background = Background()
    cache_bytes_max: int | None = None
    is_native: bool = False  # straight on the cache's file: no process serves it
    is_start_up: bool = True  # whoever reads there begins to: it takes no other seq's place
    python: str = sys.executable  # whose boxlink serves it
    put_on: str = ""
    order: int = 0

    @property
    def place(self) -> str:
        """Where ``boxlink umount`` takes it away."""
        return self.put_on or self.target

    @property
    def directory(self) -> str:
        """Where it is read: its place, or the dataset's directory on a node, below which that lies
        (synclib/engine/lazy_place.py)."""
        data, _, slot = self._parts()
        return f"{data}/{slot.partition('/')[0]}" if slot else self.place

    @property
    def turn(self) -> int:
        """Of those that are read in one directory, the highest stands there."""
        slot = self._parts()[2].split("/")
        return int(slot[1]) if len(slot) > 1 and slot[1].isdigit() else self.order

    def _parts(self) -> tuple[str, str, str]:
        return self.target.partition(f"/{STATE_DIRECTORY}/lazy/")


# In a mount's directory: says that the start-up of whoever reads there is over.
READY = "ready"


def spec_directory(state: Path, place: str, order: int = 0) -> Path:
    """Where a mount's spec, log and blob are."""
    name = os.fsencode(place) + (b"\0%d" % order if order else b"")
    return state / "mount" / blake3(name).hexdigest(16)


def read_spec(directory: Path) -> MountSpec | None:
    """The spec in a mount's directory; None where there is none that reads."""
    try:
        return msgspec.json.decode((directory / "mount.json").read_bytes(), type=MountSpec)
    except (OSError, *DECODE_ERRORS):
        return None


def all_specs(state: Path) -> Iterator[tuple[Path, MountSpec]]:
    """Every mount that this node knows of."""
    for directory in sorted((state / "mount").glob("*")):
        spec = read_spec(directory)
        if spec is not None:
            yield directory, spec
