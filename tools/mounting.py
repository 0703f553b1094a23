"""Starting and ending the processes of a lazy mount."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from synclib.core.manifest import Manifest
from synclib.core.names import STATE_DIRECTORY
from synclib.disk.atomic import write_atomic
from synclib.disk.cache_limits import check_limit
from synclib.disk.faults import disk_errors
from synclib.disk.fuse_mount import unmount_fuse
from synclib.disk.hydrated import native_lock, note_native
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mount_erofs_reading_ahead, mounted_on, put_mount, unmount
from synclib.engine.cache_work import Background
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lazy_place import Started
from synclib.engine.mount import Mode, Prepared, VolumeRef, is_hydrated, prepare, prepare_tree, settled
from synclib.errors import Conflict, Invalid, Missing, Unavailable, Unsupported
from synclib.lazy.dataset import Dataset
from synclib.lazy.metadata import prune
from tools.lazy_probe import Rung, rung_of
from tools.mount_ahead import LOG, REPLACED, KeeperAhead, keeper_ahead
from tools.mount_control import ask
from tools.mount_keeper import device_name, forget_device
from tools.mount_spec import READY, MountSpec, all_specs, read_spec, spec_directory
from tools.mount_volumes import VolumesHere
from tools.mounted import (
    OURS,
    alone_at,
    check_replaceable,
    clear_dead,
    detach,
    forget,
    is_keeper,
    is_served,
    known_at,
    standing_at,
    tell_replaced,
)

CACHE_BYTES_MIN = 8 << 20
_END_S = 20.0
_ASK_EVERY_S = 1.0
_RENEW_S = 90.0
_LOOK_MS = 60_000  # the kernel says when anything is mounted or unmounted (proc(5), /proc/pid/mounts)
ASKED_FOR = "asked for"
# What a kernel says that lacks EROFS, FUSE or mounts of files, or where this process may not mount.
_REFUSED = (errno.EPERM, errno.ENODEV, errno.EINVAL, errno.ENOTBLK, errno.EOPNOTSUPP, errno.ENOENT, errno.EACCES)


class KeeperMounter:
    """Starts keepers for a node's datasets (synclib/engine/lazy_place.py, Mounter)."""

    def __init__(
        self,
        host: Host,
        connect: Connect,
        background: Background,
        cache_bytes_max: int | None = None,
        mode: Mode | None = None,
        volumes: VolumesHere | None = None,
    ) -> None:
        """``mode``: how; None for the best way that this machine has. ``volumes``: where there may be any."""
        self._host, self._connect = host, connect
        self._background, self._cache_bytes_max = background, cache_bytes_max
        self._rung = None if mode is None else Rung(mode, ASKED_FOR)
        self._volumes = volumes
        self._ahead: KeeperAhead | None = None

    def prepare(self, dataset: Dataset, manifest: Manifest, *, from_snapshot: bool = False) -> Prepared:
        if os.geteuid() != 0:
            raise Unsupported("only root can mount")
        if self._ahead is None:
            cache = self._host.dataset_cache(dataset.store.url, dataset.root)
            self._ahead = keeper_ahead(self._host.state, cache)
        rung = self._rung or probe(self._host, with_overlay=True)
        prepared = prepare_as(rung, dataset, self._host, manifest)
        if from_snapshot and self._volumes is not None and not is_hydrated(prepared):
            return self._volumes.add(prepared, dataset, manifest)
        return prepared

    def release(self, dataset: Dataset, kept: str = "") -> bool:
        return self._volumes is None or self._volumes.release(dataset, kept)

    def swap(
        self,
        prepared: Prepared,
        dataset: Dataset,
        manifest: Manifest,
        snapshot: str,
        former: VolumeRef | None,
        let_go: Callable[[], None],
    ) -> Prepared:
        if is_hydrated(prepared):
            return prepared
        if self._volumes is None:
            raise Unsupported("there are no volumes here")
        return self._volumes.swap(prepared, dataset, manifest, snapshot, former, let_go)

    def former_again(self, dataset: Dataset, former: VolumeRef) -> VolumeRef | None:
        return None if self._volumes is None else self._volumes.former_again(dataset, former)

    def serve_from(self, dataset: Dataset, volume: VolumeRef | None) -> None:
        for directory, spec in all_specs(self._host.state):
            served = spec.prepared
            if served.root == dataset.root and served.volume != volume and is_keeper(spec.keeper_pid):
                try:
                    renew(
                        directory,
                        msgspec.structs.replace(spec, prepared=msgspec.structs.replace(served, volume=volume)),
                    )
                except Unavailable:
                    # One of an older seq that ends just now, for nobody uses it any more, has nothing open either.
                    if is_keeper(spec.keeper_pid):
                        raise

    def start(self, prepared: Prepared, target: str) -> Started:
        why = ""
        if prepared.volume is not None and self._volumes is not None:
            prepared = self._volumes.attached_again(prepared)
            why = "" if prepared.volume is not None else prepared.why_no_volume
        ahead, self._ahead = self._ahead, None
        with contextlib.nullcontext() if ahead is None else contextlib.closing(ahead):
            limits = (self._background, self._cache_bytes_max)
            return Started(start_mount(self._host, self._connect, prepared, target, *limits, ahead) is None, why)

    def is_alive(self, target: str) -> bool:
        spec = read_spec(spec_directory(self._host.state, target))
        return spec is not None and is_served(spec)

    def forget(self, target: str) -> None:
        forget(spec_directory(self._host.state, target))


def probe(host: Host, *, with_overlay: bool) -> Rung:
    """The best way to mount that this machine has, found by doing it."""
    with disk_errors():
        host.state.mkdir(parents=True, exist_ok=True)
        return rung_of(host.state, with_overlay=with_overlay)


def prepare_as(rung: Rung, dataset: Dataset, host: Host, manifest: Manifest) -> Prepared:
    """Bring here what a seq needs to be mounted so. Unsupported where nothing can be mounted."""
    if rung.mode is None:
        raise Unsupported(
            f"nothing can be mounted here: {rung.why}",
            hint="boxlink restore DATASET DIR and boxlink cat DATASET PATH need no mount",
        )
    if rung.mode is Mode.FUSE:
        return prepare_tree(dataset, host, manifest, rung.why)
    return prepare(dataset, host, manifest)


def check_cache_size(host: Host, cache_bytes_max: int | None) -> None:
    """Invalid, Unsupported where the caches of a node cannot have that limit."""
    if cache_bytes_max is None:
        return
    if cache_bytes_max < CACHE_BYTES_MIN:
        raise Invalid(f"a cache has at least {CACHE_BYTES_MIN} bytes", hint=f"--cache-size {CACHE_BYTES_MIN}")
    check_limit(host.cache, cache_bytes_max)


def check_target(directory: Path) -> str:
    """The real path to mount on: an existing directory that can be entered."""
    try:
        is_there = directory.is_dir()
    except OSError as error:  # what is mounted there is served by nobody
        raise Invalid(
            f"it cannot be entered: {error.strerror}", hint=f"boxlink umount --force {directory}", path=str(directory)
        ) from error
    if not is_there:
        raise Invalid("there is no such directory", hint=f"mkdir -p {directory}", path=str(directory))
    return os.path.realpath(directory)


def check_empty(target: str) -> None:
    """Invalid where something would be hidden by a mount on the directory. What is mounted there already is no concern
    of this: it is told or replaced (start_mount)."""
    above = mounted_on(os.fsencode(target))
    if above and above[-1][0] in OURS:
        return
    with disk_errors(), os.scandir(target) as listing:
        found = next(listing, None)
    if found is not None:
        raise Invalid(
            f"the directory is not empty: a mount would hide what is in it, {found.name!r} for one",
            hint=f"choose an empty one: mkdir {target}.mounted",
            path=target,
        )


def start_mount(
    host: Host,
    connect: Connect,
    prepared: Prepared,
    target: str,
    background: Background,
    cache_bytes_max: int | None = None,
    ahead: KeeperAhead | None = None,
) -> subprocess.Popen[bytes] | None:
    """Mount a seq; when this returns it can be read. Another seq of the same dataset that stands there is replaced, at
    once: what is open keeps its bytes. The keeper's process, which holds none of our descriptors; None where every byte
    is here already, so that nothing need run: not with a limit, for then what is here may go.

    ``ahead``: the keeper, if one waits for it."""
    with alone_at(host.state, target):
        return _start_alone(host, connect, prepared, target, background, cache_bytes_max, ahead)


def _start_alone(
    host: Host,
    connect: Connect,
    prepared: Prepared,
    target: str,
    background: Background,
    cache_bytes_max: int | None,
    ahead: KeeperAhead | None,
) -> subprocess.Popen[bytes] | None:
    former = standing_at(host, target)
    if former is not None:
        check_replaceable(former, connect.url, prepared.root, prepared.seq)
    clear_dead(host.state, target, is_standing=former is not None)
    order = max((spec.order + 1 for _, spec in known_at(host.state, target)), default=0)
    directory = spec_directory(host.state, target, order)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for word in (READY, REPLACED):
        (directory / word).unlink(missing_ok=True)
    if former is not None:
        (directory / "seq").mkdir(exist_ok=True)
    spec = MountSpec(
        connect.url,
        dict(connect.s3),
        host.node,
        str(host.state),
        str(host.cache),
        target if former is None else str(directory / "seq"),
        prepared,
        background=background,
        cache_bytes_max=cache_bytes_max,
        is_start_up=former is None and not _is_followed_seq(host, prepared, target),
        put_on="" if former is None else target,
        order=order,
    )
    is_native = cache_bytes_max is None and _mount_native(directory, spec)
    keeper = None if is_native else _start_keeper(directory, spec, ahead)
    tell_replaced(host.state, target)
    _prune(host, prepared)
    return keeper


def _is_followed_seq(host: Host, prepared: Prepared, target: str) -> bool:
    """Whether a node mounts a seq in the place of another of the same dataset, which programs read already."""
    slots = os.path.dirname(os.path.dirname(target))
    return f"/{STATE_DIRECTORY}/lazy/" in target and any(
        os.path.dirname(os.path.dirname(known.target)) == slots
        and known.prepared.root == prepared.root
        and is_served(known)
        for _, known in all_specs(host.state)
    )


def _mount_native(directory: Path, spec: MountSpec) -> bool:
    """Mount on the cache's file, if every byte is there; whether it was done."""
    prepared = settled(spec.prepared)
    spec = msgspec.structs.replace(spec, prepared=prepared)
    if not is_hydrated(prepared):
        return False
    with native_lock(Path(prepared.cache)):
        note_native(Path(prepared.cache))
        return is_hydrated(prepared) and _mounted_native(directory, spec)


def _mounted_native(directory: Path, spec: MountSpec) -> bool:
    """The spec first: what is mounted must be known."""
    prepared, made_at = spec.prepared, os.fsencode(spec.target)
    native = msgspec.structs.replace(spec, is_native=True, target=spec.place, put_on="")
    write_atomic(directory / "mount.json", msgspec.json.encode(native), 0o600)
    try:
        mount_erofs_reading_ahead(os.fsencode(prepared.image), os.fsencode(prepared.blob), made_at)
        if spec.put_on:
            try:
                put_mount(made_at, os.fsencode(spec.put_on), replaces=True)
            finally:
                unmount(made_at, MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError:
        return False
    return True


def _prune(host: Host, prepared: Prepared) -> None:
    used = {stem for _, known in all_specs(host.state) for stem in known.prepared.metadata.stems()}
    prune(Path(prepared.cache), used, host.clock.wall_ns() / 1e9)


def _start_keeper(directory: Path, spec: MountSpec, ahead: KeeperAhead | None) -> subprocess.Popen[bytes]:
    ahead = ahead or KeeperAhead(Path(spec.state))
    with contextlib.closing(ahead):
        path = directory / "mount.json"
        write_atomic(path, msgspec.json.encode(msgspec.structs.replace(spec, keeper_pid=ahead.process.pid)), 0o600)
        _check_answer(ahead.begin(path), spec)
    return ahead.process


def _check_answer(answer: str, spec: MountSpec) -> None:
    if answer == "ok":
        return
    number, _, _ = answer.partition(" ")
    if number in map(str, _REFUSED):
        raise Unsupported(f"the kernel does not mount it: {answer}", path=spec.target)
    raise Unavailable(f"it could not be mounted: {answer or 'the keeper ended'}", path=spec.target)


def adopt(directory: Path, spec: MountSpec, device: int) -> subprocess.Popen[bytes]:
    """Let a new keeper go on with a mount whose keeper was killed, by the connection ``device`` that somebody held open
    meanwhile; who waits there for bytes gets them. A worker that answers there still is replaced. Unavailable where
    none comes to life."""
    spec = msgspec.structs.replace(spec, python=sys.executable)
    path = directory / "mount.json"
    write_atomic(path, msgspec.json.encode(spec), 0o600)
    ready, told = os.pipe2(os.O_CLOEXEC)
    with open(directory / LOG, "ab") as log, open(ready, "rb") as answers:
        try:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "tools.mount_keeper", str(path), "adopt", str(device), str(told)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=(told, device),
            )
        finally:
            os.close(told)
        write_atomic(path, msgspec.json.encode(msgspec.structs.replace(spec, keeper_pid=keeper.pid)), 0o600)
        _check_answer(answers.readline().decode().strip(), spec)
    return keeper


def wait_for(host: Host, target: str, keeper: subprocess.Popen[bytes], progress: Progress) -> None:
    """Until it is unmounted; Ctrl-C unmounts it. ``progress`` is told how its hydration goes."""
    directory = next(place for place, spec in all_specs(host.state) if spec.keeper_pid == keeper.pid)
    try:
        while keeper.poll() is None:
            figures = ask(directory)
            if figures is not None:
                progress("hydrated", int(figures["hydrated_bytes"]), int(figures["hydrated_total_bytes"]))
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(_ASK_EVERY_S)
    except KeyboardInterrupt:
        keeper.terminate()
        keeper.wait()


def wait_for_native(host: Host, target: str) -> None:
    """Until what no process serves is unmounted, by us on Ctrl-C."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        watch = select.poll()
        watch.register(mounts.fileno(), select.POLLERR | select.POLLPRI)
        try:
            while mounted_on(os.fsencode(target)):
                watch.poll(_LOOK_MS)
        except KeyboardInterrupt:
            end_mount(host, target, is_forced=False)
    for directory, _ in known_at(host.state, target):
        forget(directory)


def end_mount(host: Host, target: str, *, is_forced: bool) -> None:
    """Unmount what is mounted on ``target``, and wait until its daemon is gone. Conflict while files are open there,
    unless forced: then who reads gets an error."""
    tell_replaced(host.state, target)
    known = known_at(host.state, target)
    if not known:
        raise Missing("boxlink has mounted nothing there", path=target)
    directory, spec = known[-1]
    if is_forced:
        if is_keeper(spec.keeper_pid):
            os.kill(spec.keeper_pid, signal.SIGTERM)
    else:
        try:
            unmount_fuse(os.fsencode(target))  # by root: whatever kind of mount it is
        except OSError as error:
            if is_served(spec):
                raise Conflict(
                    f"it cannot be unmounted: {error.strerror}",
                    hint="close what is open there, or --force",
                    path=target,
                ) from error
    deadline = time.monotonic() + _END_S
    while is_keeper(spec.keeper_pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    if is_forced:
        if not is_keeper(spec.keeper_pid):
            forget_device(device_name(str(directory)))
        for place in {target, spec.target, str(directory / "blob")}:
            detach(os.fsencode(place))
        if not is_keeper(spec.keeper_pid):
            shutil.rmtree(directory, ignore_errors=True)  # a keeper that was killed has left it
    forget(directory)


def renew(place: Path, spec: MountSpec) -> dict[str, Any]:
    """Have this program serve a mount from now on, in place; how the mount does then. Unavailable where it could not
    take over, and the former one goes on."""
    before = ask(place)
    former = before["worker"] if before is not None else 0
    renewed = msgspec.structs.replace(spec, python=sys.executable)
    write_atomic(place / "mount.json", msgspec.json.encode(renewed), 0o600)
    os.kill(spec.keeper_pid, signal.SIGHUP)
    deadline = time.monotonic() + _RENEW_S
    while time.monotonic() < deadline and is_keeper(spec.keeper_pid):
        found = ask(place)
        is_renewed = found is not None and found["worker"] != former and not _is_alive(former)
        # Looked at last: a keeper that was killed meanwhile has a worker that answers still.
        if found is not None and is_renewed and is_keeper(spec.keeper_pid):
            return found
        time.sleep(0.02)
    raise Unavailable("this boxlink did not take over", hint=f"see {place / 'log'}", path=spec.target)


def _is_alive(pid: int) -> bool:
    return pid != 0 and os.path.exists(f"/proc/{pid}/exe")
