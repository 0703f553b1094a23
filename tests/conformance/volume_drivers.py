"""The volume drivers that test_volumes.py runs on: by name, where each finds a zone and a node to play with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from synclib.clock import Clock, SeededEntropy
from synclib.volume.base import VolumeDriver
from synclib.volume.ebs import EbsDriver
from tests.aws.clients import client
from tests.aws.standin import Standin, running_standin
from tests.conformance.local_volumes import local_volumes


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


class EbsPlace:
    def __init__(self, standin: Standin) -> None:
        self.standin = standin
        self.clock = standin.clock
        self.driver = EbsDriver(client(standin, "ec2"), client(standin, "ebs"), standin.clock, SeededEntropy(1))
        self.zone, self.other_zone = standin.site.zones[:2]
        self.node, self.other_node = (self._run() for _ in range(2))
        self.advance(60)

    def _run(self) -> str:
        answer = client(self.standin, "ec2").run_instances(
            ImageId="ami-00000000000000001",
            InstanceType="c7g.large",
            MinCount=1,
            MaxCount=1,
            Placement={"AvailabilityZone": self.zone},
        )
        return str(answer["Instances"][0]["InstanceId"])

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def write(self, volume_id: str, index: int, data: bytes) -> None:
        with self.standin.locked():
            self.standin.volumes.records[volume_id].blocks[index] = self.standin.site.blocks.add(data)

    def read(self, volume_id: str, index: int) -> bytes:
        with self.standin.locked():
            return self.standin.site.blocks.read(self.standin.volumes.records[volume_id].blocks.get(index))


@contextmanager
def _ebs(directory: Path) -> Iterator[EbsPlace]:
    with running_standin(directory) as standin:
        yield EbsPlace(standin)


DRIVERS: dict[str, Callable[[Path], AbstractContextManager[VolumePlace]]] = {"ebs": _ebs, "local": local_volumes}
