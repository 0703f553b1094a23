"""What is mounted where on this machine, as the specs of its mounts tell: found, told, taken away. None is touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from synclib.disk.faults import disk_errors
from synclib.disk.fuse_mount import unmount_fuse
from synclib.disk.mounts import mounted_on
from synclib.engine.host import Host
from synclib.errors import Conflict, Invalid, Missing
from tools.mount_ahead import REPLACED
from tools.mount_keeper import device_name, forget_device
from tools.mount_spec import MountSpec, all_specs, read_spec, spec_directory

OURS = (b"erofs", b"fuse.boxlink")
_EXEC_S = 1.0


def find_mount(state: Path, target: str) -> tuple[Path, MountSpec] | None:
    """A mount's directory and spec, by where it is read: where it is mounted, or the dataset's directory on a node, of
    which the seq that stands there last is meant."""
    found = [known for known in all_specs(state) if target in (known[1].target, known[1].directory)]
    return max(found, key=lambda known: known[1].turn, default=None)


def mount_at(host: Host, directory: Path) -> tuple[Path, MountSpec]:
    """What is served on a directory, also where it is a lazy dataset's of ``boxlink sync``: the mount's own directory
    and its spec. Missing where nothing of ours is mounted, Invalid where no daemon serves it."""
    target = os.path.realpath(directory)
    found = find_mount(host.state, target)
    if found is not None and found[1].is_native and is_served(found[1]):
        raise Invalid(
            "every byte is here, and it is mounted straight on its cache: no daemon serves it, nothing is evicted",
            hint="where its room is needed: boxlink umount it, then mount it (or sync) with --cache-size",
            path=str(directory),
        )
    if found is None or not is_keeper(found[1].keeper_pid):
        raise Missing("no daemon of boxlink serves that", hint="boxlink status tells what is mounted", path=target)
    return found


def mounted_place(host: Host, directory: Path) -> str:
    """The real path of a directory, without a look at what is mounted there if that is ours: it may not answer."""
    parent, name = os.path.split(os.path.abspath(directory))
    target = os.path.join(os.path.realpath(parent), name)
    return target if known_at(host.state, target) else os.path.realpath(directory)


def standing_at(host: Host, target: str) -> MountSpec | None:
    """What is served and can be read at a place by now; not what only open files of are served."""
    above = mounted_on(os.fsencode(target))
    known = known_at(host.state, target)
    is_ours = bool(above) and above[-1][0] in OURS
    return known[-1][1] if is_ours and known and is_served(known[-1][1]) else None


def known_at(state: Path, target: str) -> list[tuple[Path, MountSpec]]:
    """Whatever was put at a place and still runs or was left there, in that order."""
    found = [(directory, spec) for directory, spec in all_specs(state) if spec.place == target]
    return sorted(found, key=lambda known: known[1].order)


@contextlib.contextmanager
def alone_at(state: Path, target: str) -> Iterator[None]:
    """Nobody else mounts anything at a place meanwhile: two who did would each take the other's for what was there."""
    with disk_errors():
        state.mkdir(parents=True, exist_ok=True)
        lock = open(state / "mount.lock", "ab")  # noqa: SIM115 - closed below
    with lock:  # a byte of it for each place
        place = int(spec_directory(state, target).name, 16) % (1 << 62)
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, place, os.SEEK_SET)
        yield


def check_replaceable(former: MountSpec, store: str, root: str, seq: int) -> None:
    """Conflict where what stands there is not another seq of that dataset, or cannot be replaced at once."""
    name = former.prepared.root.partition("/")[2]
    if (former.store, former.prepared.root) != (store, root) or former.prepared.seq == seq:
        what = f"{name} is mounted there already"
    elif os.geteuid() != 0:
        what = f"{name} is mounted there at seq {former.prepared.seq}, and only root can put another in its place"
    else:
        return
    raise Conflict(what, hint=f"boxlink umount {former.place}", path=former.place)


def tell_replaced(state: Path, target: str) -> None:
    """All but the last that was put at a place are not shown any more: they end when nobody has a file of them open."""
    for directory, spec in known_at(state, target)[:-1]:
        if spec.is_native:
            shutil.rmtree(directory, ignore_errors=True)  # there is nobody to tell
        else:
            with contextlib.suppress(FileNotFoundError):
                (directory / REPLACED).touch()


def clear_dead(state: Path, target: str, *, is_standing: bool) -> None:
    """What was put at a place and is not served any more is taken away. ``is_standing``: the last is served there; if
    not, those that are, because files of them are open, are not shown."""
    known = known_at(state, target)
    for directory, spec in known:
        if is_served(spec):
            if not is_standing:
                (directory / REPLACED).touch()
        elif directory == known[-1][0]:
            _clear(directory, spec)
        else:
            forget(directory)


def _clear(directory: Path, former: MountSpec) -> None:
    """Take away what a keeper that was killed has left mounted: below the next mount nobody would answer there, and be
    found once that is unmounted."""
    for target in {os.fsencode(former.place), os.fsencode(former.target)}:
        for _ in mounted_on(target):
            if mounted_on(target)[-1][0] in OURS:
                detach(target)
    forget(directory)


def forget(directory: Path) -> None:
    """What is kept of a mount that has ended goes: one on the cache's file, which no keeper takes away, or one whose
    keeper was killed, which nobody shall wait for any more."""
    spec = read_spec(directory)
    if spec is None or is_served(spec):
        return
    if not spec.is_native:
        forget_device(device_name(str(directory)))
        for place in (directory / "seq", directory / "blob"):
            detach(os.fsencode(place))
    shutil.rmtree(directory, ignore_errors=True)


def is_served(spec: MountSpec) -> bool:
    """Whether what a spec says is mounted there, and can be read."""
    if not spec.is_native:
        return is_keeper(spec.keeper_pid)
    found = mounted_on(os.fsencode(spec.target))
    return bool(found) and found[-1][0] == b"erofs"


def is_keeper(pid: int) -> bool:
    """Whether that process is a keeper of ours, still."""
    deadline = time.monotonic() + _EXEC_S
    try:
        while True:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][:1]
            # It is empty for a moment while a keeper becomes a newer one; that of a zombie always is.
            if words or state == b"Z" or time.monotonic() > deadline:
                return b"tools.mount_keeper" in words
            time.sleep(0.001)
    except OSError:
        return False


def detach(place: bytes) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        unmount_fuse(place, is_lazy=True)
