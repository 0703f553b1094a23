"""Mounts whose keepers were killed, gone on with by the connections that the service manager kept (docs/mount.md).

A connection to /dev/fuse ends when nobody has it open. A keeper hands its own to the service manager, so that whoever
reads while keeper and worker are killed waits until the service is started anew, which finds the connection again.
"""

from __future__ import annotations

import os
import select
import stat
import subprocess
from pathlib import Path

from synclib.disk.mounts import fuse_connection
from synclib.engine.event_log import Log
from synclib.engine.mount import Mode
from synclib.errors import BoxlinkError
from tools.listen_fds import take_descriptors
from tools.mount_keeper import DEVICE_PREFIX, forget_device
from tools.mount_spec import MountSpec, read_spec
from tools.mounted import is_keeper
from tools.mounting import adopt

_KEY_CHARACTERS = frozenset("0123456789abcdef")
_FDINFO = "fuse_connection:"  # fs/fuse/dev.c, fuse_dev_show_fdinfo; newer kernels have it


class _RefusedError(Exception):
    """Why a descriptor is none that a mount here can go on with."""


def adopt_mounts(state: Path, log: Log) -> dict[str, subprocess.Popen[bytes]]:
    """Go on with every mount that a descriptor is there for and nobody keeps: their keepers, by target.

    What is stale or somebody else's is said, closed, and not kept any longer.
    """
    keepers: dict[str, subprocess.Popen[bytes]] = {}
    for name, device in take_descriptors():
        try:
            directory, spec = _mount_of(state, name)
            if is_keeper(spec.keeper_pid):
                continue  # it was this process alone that began anew
            _check(device, directory, spec)
            keepers[spec.target] = adopt(directory, spec, device)
            log.info("went on with a mount", directory=spec.target, keeper=keepers[spec.target].pid)
        except (_RefusedError, BoxlinkError, OSError) as error:
            why = error.message if isinstance(error, BoxlinkError) else str(error)
            log.warning("a kept descriptor is refused", name=name, reason=why)
            forget_device(name)
        finally:
            os.close(device)
    return keepers


def _mount_of(state: Path, name: str) -> tuple[Path, MountSpec]:
    key = name.removeprefix(DEVICE_PREFIX)
    if key == name or not key or not _KEY_CHARACTERS.issuperset(key):
        raise _RefusedError("no mount's descriptor is called so")
    directory = state / "mount" / key
    spec = read_spec(directory)
    if spec is None or spec.is_native:
        raise _RefusedError("that mount is not known here")
    return directory, spec


def _check(device: int, directory: Path, spec: MountSpec) -> None:
    """Whether it is the connection of that mount, and alive."""
    status, fuse = os.fstat(device), os.stat("/dev/fuse")
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != fuse.st_rdev:
        raise _RefusedError("it is no /dev/fuse")
    watch = select.poll()
    watch.register(device, 0)
    if watch.poll(0):
        raise _RefusedError("its connection is over")
    place = spec.target if spec.prepared.mode is Mode.FUSE else str(directory / "blob")
    mounted = fuse_connection(os.fsencode(place))
    if mounted is None:
        raise _RefusedError("its mount is gone")
    connected = _connection_of(device)
    if connected not in (None, mounted):
        raise _RefusedError("it is another mount's")


def _connection_of(device: int) -> int | None:
    """The number of a descriptor's connection; None where the kernel does not tell."""
    with open(f"/proc/self/fdinfo/{device}") as file:
        for line in file:
            if line.startswith(_FDINFO):
                return int(line.removeprefix(_FDINFO))
    return None
