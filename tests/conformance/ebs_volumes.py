"""The EBS driver on the stand-in: two instances in one zone, and volumes written where the stand-in keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synclib.clock import SeededEntropy
from synclib.volume.ebs import EbsDriver
from tests.aws.clients import client
from tests.aws.standin import Standin, running_standin


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
def ebs_volumes(directory: Path) -> Iterator[EbsPlace]:
    with running_standin(directory) as standin:
        yield EbsPlace(standin)
