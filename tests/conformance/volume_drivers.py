"""The volume drivers that test_volumes.py runs on: by name, where each finds a zone and a node to play with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from synclib.clock import Clock
from synclib.volume.base import VolumeDriver
from tests.conformance.ebs_volumes import ebs_volumes
from tests.conformance.local_volumes import copied_volumes, local_volumes


class VolumePlace(Protocol):
    """``zone`` and ``other_zone`` (empty where there is but one); ``node`` is in ``zone``, and so is ``other_node``.

    ``clock`` is the driver's. ``advance`` lets states move. ``write`` and ``read`` do with one block of a volume what
    the node that has it attached would do, and bring it to the disk.
    """

    driver: VolumeDriver
    clock: Clock
    zone: str
    other_zone: str
    node: str
    other_node: str

    def advance(self, seconds: float) -> None: ...

    def write(self, volume_id: str, index: int, data: bytes) -> None: ...

    def read(self, volume_id: str, index: int) -> bytes: ...


DRIVERS: dict[str, Callable[[Path], AbstractContextManager[VolumePlace]]] = {
    "ebs": ebs_volumes,
    "local": local_volumes,
    "local copies": copied_volumes,
}
