"""Where test_account.py runs: on the stand-in, and on an account of AWS where BOXLINK_TEST_AWS names a zone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synclib.clock import Clock, Entropy, SeededEntropy, SystemClock, SystemEntropy
from synclib.errors import BoxlinkError
from synclib.volume.aws_calls import Calls
from synclib.volume.ebs import EbsDriver, open_ebs
from tests.aws.clients import client
from tests.aws.requests import IMAGE, KIND
from tests.aws.standin import running_standin
from tools.fleet import ec2_instances

TEST_TAG = "boxlink:test"
# An instance that boots from here, with a role that may read it and a release that its image trusts.
REAL_STORE = os.environ.get("BOXLINK_TEST_AWS_STORE", "")
REAL_ZONE = os.environ.get("BOXLINK_TEST_AWS", "")
PLACES = ("standin", *(["aws"] if REAL_ZONE else []))


@dataclass(frozen=True)
class Account:
    """``image``: of the instance that volumes are attached to; empty where none is to be started. ``mark``: the value
    of the tag that all of a test's things carry, and by which they are taken away."""

    driver: EbsDriver
    ec2: Any
    clock: Clock
    entropy: Entropy
    zone: str
    image: str
    kind: str
    mark: str

    @property
    def tags(self) -> dict[str, str]:
        return {TEST_TAG: self.mark}

    @property
    def calls(self) -> Calls:
        return Calls(self.clock, self.entropy)

    def clear(self) -> None:
        """Take away all that the test made; what is in use still goes once its instance has ended."""
        live = ec2_instances.instances(self.ec2, (), self.tags, self.calls)
        ec2_instances.terminate(self.ec2, [each.id for each in live], self.calls)
        for snapshot in self.driver.snapshots(tags=self.tags):
            self.driver.delete_snapshot(snapshot.id)
        stop = self.clock.monotonic() + 300
        while volumes := self.driver.volumes(tags=self.tags):
            if self.clock.monotonic() > stop:
                raise AssertionError(f"still there, and paid for: {[volume.id for volume in volumes]}")
            for volume in volumes:
                with suppress(BoxlinkError):
                    self.driver.delete_volume(volume.id)
            self.clock.sleep(2)


@contextmanager
def _standin_account(directory: Path) -> Iterator[Account]:
    with running_standin(directory) as standin:
        ec2, ebs = client(standin, "ec2"), client(standin, "ebs")
        entropy = SeededEntropy(1)
        driver = EbsDriver(ec2, ebs, standin.clock, entropy)
        yield Account(driver, ec2, standin.clock, entropy, standin.site.zones[0], IMAGE, KIND, "one")
        standin.clock.advance(60)
        assert standin.resources() == []


@contextmanager
def _real_account() -> Iterator[Account]:
    """With boto3's usual credentials, in the region of the zone."""
    region = REAL_ZONE[:-1]
    clock, entropy = SystemClock(), SystemEntropy()
    yield Account(
        open_ebs(clock, entropy, region=region),
        ec2_instances.client({"region": region}),
        clock,
        entropy,
        REAL_ZONE,
        os.environ.get("BOXLINK_TEST_AWS_IMAGE", ""),
        os.environ.get("BOXLINK_TEST_AWS_TYPE", "t4g.nano"),
        entropy.token(8).hex(),
    )


@contextmanager
def account(place: str, directory: Path) -> Iterator[Account]:
    """The account, without anything that the test made once the block ends."""
    with _standin_account(directory) if place == "standin" else _real_account() as found:
        try:
            yield found
        finally:
            found.clear()
