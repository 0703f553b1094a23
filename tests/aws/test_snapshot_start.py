"""An instance that really starts: its user-data, keys and place from IMDSv2 alone, a volume of the newest snapshot made
and attached with a node's rights, and its dataset served from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy
from synclib.volume.aws_calls import Calls
from tests.aws.boxlink_command import COMMAND, ROOT, Publisher
from tests.aws.clients import client
from tests.aws.loop_devices import loop_devices, why_not
from tests.aws.machines import Machine, Machines, machines
from tests.aws.policies import policy_document
from tests.aws.records import REGION
from tests.aws.requests import IMAGE, KIND
from tests.aws.standin import Standin, running_standin
from tools.fleet.ec2_instances import run_instance
from tools.lazy_probe import why_not_lazy

pytest.importorskip("tools.cli.snapshot", reason="this boxlink has no snapshot verb")
PACE = 100.0
ZONE = "eu-central-1b"


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    if trouble := why_not() or why_not_lazy(tmp_path):
        pytest.skip(trouble)
    with running_standin(tmp_path, pace=PACE) as standin, loop_devices(standin, tmp_path / "images"):
        yield standin


@pytest.fixture
def publisher(standin: Standin, tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "publisher", standin, standin.identity("publisher", policy_document("publisher")))


def boot(place: Path) -> list[str]:
    """What the bootstrap would start."""
    words = ["--data", str(place / "data"), "--poll", "0.2", "--no-hydrate", "--from", "snapshot", "--driver", "ebs"]
    return [*COMMAND, "sync", *words]


@pytest.fixture
def fleet(standin: Standin, publisher: Publisher, tmp_path: Path) -> Iterator[Machines]:
    environ = {
        "PYTHONPATH": str(ROOT),
        "BOXLINK_STORE": publisher.store,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL_EC2": standin.endpoint,
        "AWS_ENDPOINT_URL_EBS": standin.endpoint,
    }

    def asked(place: Path) -> list[str]:
        covers = place / "data" / "covers"
        covers.mkdir(parents=True)
        (covers / "synch.active").touch()
        return boot(place)

    directories: list[Path] = []
    try:
        with machines(standin, tmp_path / "machines", asked, environ) as found:
            try:
                yield found
            finally:
                directories += [machine.directory for machine in found.running.values()]
    finally:
        # Only now: a sync that still ran would have mounted it again.
        for directory in directories:
            end_mounts(directory)


def end_mounts(directory: Path) -> None:
    """As a machine's end would: every process that was told of its directory, and every mount."""
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if f"{directory}/".encode() in words and b"tools.mount_" in words:
                os.kill(pid, signal.SIGKILL)
    with open("/proc/self/mountinfo") as file:
        places = [line.split(" ")[4] for line in file if f" {directory}/" in line]
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def launch(standin: Standin) -> str:
    operator = client(standin, "ec2", standin.identity("operator", policy_document("operator")))
    request: dict[str, Any] = {
        "ImageId": IMAGE,
        "InstanceType": KIND,
        "MinCount": 1,
        "MaxCount": 1,
        "Placement": {"AvailabilityZone": ZONE},
        "IamInstanceProfile": {"Name": "boxlink-node"},
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required"},
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "boxlink:store", "Value": "s3://covers-bucket/fleet"}]}
        ],
        "ClientToken": "render-1",
    }
    return run_instance(operator, [request], Calls(standin.clock, SeededEntropy(1)))


def until(machines: Machines, instance_id: str, is_so: Callable[[Path], bool]) -> Machine:
    """Until something is so in an instance's data directory."""
    deadline = time.monotonic() + 90
    while True:
        with machines.standin.locked():
            machine = machines.running.get(instance_id)
        if machine is not None:
            with suppress(OSError, ValueError, KeyError):
                if is_so(machine.directory / "data"):
                    return machine
            assert machine.process.poll() is None, machine.console.read_text()
        assert time.monotonic() < deadline, machine and machine.console.read_text()
        time.sleep(0.05)


def down(data: Path) -> dict[str, Any]:
    found = json.loads((data / "covers" / "synch.down").read_text())
    assert isinstance(found, dict)
    return found


def test_node_starts_from_the_snapshot_with_its_own_rights(
    standin: Standin, publisher: Publisher, fleet: Machines
) -> None:
    made = publisher.create()["snapshot"]
    publisher.write("later")
    publisher.run("publish", "covers", publisher.source)
    instance_id = launch(standin)
    machine = until(fleet, instance_id, lambda data: down(data)["seq"] == 2)
    covers = machine.directory / "data" / "covers"
    assert down(covers.parent)["reason"] == f"from snapshot {made}, seq 1", machine.console.read_text()
    for path in publisher.source.iterdir():
        assert (covers / path.name).read_bytes() == path.read_bytes()
    [volume] = [resource for resource in standin.resources() if resource.kind == "volume"]
    assert volume.state == "in-use"
    with standin.locked():
        record = standin.volumes.records[volume.id]
        assert record.attachment is not None
        assert (record.zone, record.snapshot_id, record.attachment.instance_id) == (ZONE, made, instance_id)


def test_node_whose_role_may_nothing_takes_the_store(standin: Standin, publisher: Publisher, fleet: Machines) -> None:
    publisher.create()
    standin.add_profile("boxlink-node", {"Version": "2012-10-17", "Statement": []})
    machine = until(fleet, launch(standin), lambda data: down(data)["seq"] == 1)
    covers = machine.directory / "data" / "covers"
    assert down(covers.parent)["reason"].startswith("from the store: ")
    for path in publisher.source.iterdir():
        assert (covers / path.name).read_bytes() == path.read_bytes()
    assert not [resource for resource in standin.resources() if resource.kind == "volume"]
