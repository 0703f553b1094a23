"""Instances that really start: a process for each, in a directory of its own, with its user-data and its keys behind a
metadata service. It starts when the instance is running on the stand-in's clock, and is ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.aws.imds import Metadata, metadata_service, place_of
from tests.aws.instances import InstanceRecord
from tests.aws.standin import Standin

SHUTDOWN_S = 20.0  # an instance's programs have so long after SIGTERM
# What a program on a fresh instance does not find in its environment.
_FOREIGN = ("AWS_", "BOXLINK_", "XDG_")


@dataclass(frozen=True)
class Machine:
    """``console``: what its process wrote."""

    instance_id: str
    directory: Path
    metadata_endpoint: str
    console: Path
    process: subprocess.Popen[bytes]


# From (the instance's directory) to the command that its image runs at boot.
Boot = Callable[[Path], Sequence[str]]


class Machines:
    def __init__(self, standin: Standin, directory: Path, boot: Boot, environ: Mapping[str, str]) -> None:
        self.standin = standin
        self._directory = directory
        self._boot = boot
        self._environ = environ
        self._services: dict[str, ExitStack] = {}
        self._ending: dict[str, threading.Thread] = {}
        self.running: dict[str, Machine] = {}
        standin.instances.started = self._start
        standin.instances.ended = self._end

    def _start(self, record: InstanceRecord) -> None:
        place = self._directory / record.id
        place.mkdir(parents=True)
        values = place_of(record.id, record.kind, record.zone, record.address, record.image_id)
        role = self.standin.role_of(record.profile)
        metadata = Metadata(self.standin.clock, record.metadata, record.user_data, values, role)
        services = self._services[record.id] = ExitStack()
        endpoint = services.enter_context(metadata_service(metadata))
        console = place / "console.log"
        own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        environ = {
            **own,
            "HOME": str(place),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **self._environ,
        }
        with console.open("wb") as output:
            process = subprocess.Popen(
                list(self._boot(place)),
                cwd=place,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[record.id] = Machine(record.id, place, endpoint, console, process)

    def _end(self, record: InstanceRecord) -> None:
        machine = self.running.pop(record.id, None)
        if machine is None:
            return
        # Not waited for here: its programs may ask the stand-in for something while they end.
        thread = threading.Thread(target=self._shut_down, args=(machine,))
        self._ending[record.id] = thread
        thread.start()

    def wait_until_ended(self, instance_id: str) -> None:
        self._ending[instance_id].join()

    def _shut_down(self, machine: Machine) -> None:
        _signal(machine.process, signal.SIGTERM)
        try:
            machine.process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            machine.process.kill()
            machine.process.wait()
        _signal(machine.process, signal.SIGKILL)  # what it started and left behind
        self._services.pop(machine.instance_id).close()

    def end_all(self) -> None:
        with self.standin.locked():
            for instance_id in list(self.running):
                self._end(self.standin.instances.records[instance_id])
        for thread in self._ending.values():
            thread.join()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To all of its session's first group, if there is any left."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def machines(
    standin: Standin, directory: Path, boot: Boot, environ: Mapping[str, str] | None = None
) -> Iterator[Machines]:
    """From here on the stand-in's instances run ``boot`` in ``directory``/ID; all are ended with the block.

    ``environ``: what their image sets besides, e.g. AWS_ENDPOINT_URL_EC2.
    """
    found = Machines(standin, directory, boot, environ or {})
    try:
        yield found
    finally:
        found.end_all()
