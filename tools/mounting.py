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
from synclib.disk.mounts import mount_erofs_reading_ahead, mounted_on
from synclib.engine.cache_work import Background
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.lazy_place import Started
from synclib.engine.mount import Mode, Prepared, VolumeRef, is_hydrated, prepare, prepare_tree, settled
from synclib.errors import Conflict, Invalid, Missing, Unavailable, Unsupported
from synclib.lazy.dataset import Dataset
from synclib.lazy.metadata import prune
from tools.lazy_probe import Rung, rung_of
from tools.mount_ahead import LOG, KeeperAhead, keeper_ahead
from tools.mount_control import ask
from tools.mount_keeper import device_name, forget_device
from tools.mount_spec import READY, MountSpec, all_specs, read_spec, spec_directory
from tools.mount_volumes import VolumesHere

CACHE_BYTES_MIN = 8 << 20
_END_S = 20.0
_ASK_EVERY_S = 1.0
_RENEW_S = 90.0
_EXEC_S = 1.0
_LOOK_MS = 60_000  # the kernel says when anything is mounted or unmounted (proc(5), /proc/pid/mounts)
_OURS = (b"erofs", b"fuse.boxlink")
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
    if above and above[-1][0] in _OURS:
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
    """Mount a seq; when this returns it can be read. The keeper's process, which holds none of our descriptors; None
    where every byte is here already, so that nothing need run: not with a limit, for then what is here may go.

    ``ahead``: the keeper, if one waits for it."""
    directory = spec_directory(host.state, target)
    former = read_spec(directory)
    if former is not None and is_served(former):
        raise Conflict(
            f"{former.prepared.root.partition('/')[2]} is mounted there already",
            hint=f"boxlink umount {target}",
            path=target,
        )
    if former is not None:
        _clear(directory, former)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(directory / READY)
    spec = MountSpec(
        connect.url,
        dict(connect.s3),
        host.node,
        str(host.state),
        str(host.cache),
        target,
        prepared,
        background=background,
        cache_bytes_max=cache_bytes_max,
        is_start_up=not _is_followed_seq(host, prepared, target),
    )
    if cache_bytes_max is None and _mount_native(directory, spec):
        _prune(host, prepared)
        return None
    keeper = _start_keeper(directory, spec, ahead)
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


def _clear(directory: Path, former: MountSpec) -> None:
    """Take away what a keeper that was killed has left mounted: below the next mount nobody would answer there, and be
    found once that is unmounted."""
    target = os.fsencode(former.target)
    for _ in mounted_on(target):
        if mounted_on(target)[-1][0] in _OURS:
            _detach(target)
    forget(directory)


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
    prepared = spec.prepared
    write_atomic(directory / "mount.json", msgspec.json.encode(msgspec.structs.replace(spec, is_native=True)), 0o600)
    try:
        mount_erofs_reading_ahead(os.fsencode(prepared.image), os.fsencode(prepared.blob), os.fsencode(spec.target))
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
    directory = spec_directory(host.state, target)
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
    forget(spec_directory(host.state, target))


def end_mount(host: Host, target: str, *, is_forced: bool) -> None:
    """Unmount what is mounted on ``target``, and wait until its daemon is gone. Conflict while files are open there,
    unless forced: then who reads gets an error."""
    directory = spec_directory(host.state, target)
    spec = read_spec(directory)
    if spec is None:
        raise Missing("boxlink has mounted nothing there", path=target)
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
        for place in (os.fsencode(target), os.fsencode(directory / "blob")):
            _detach(place)
        if not is_keeper(spec.keeper_pid):
            shutil.rmtree(directory, ignore_errors=True)  # a keeper that was killed has left it
    forget(directory)


def mounted_place(host: Host, directory: Path) -> str:
    """The real path of a directory, without a look at what is mounted there if that is ours: it may not answer."""
    parent, name = os.path.split(os.path.abspath(directory))
    target = os.path.join(os.path.realpath(parent), name)
    return target if (spec_directory(host.state, target) / "mount.json").exists() else os.path.realpath(directory)


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


def _detach(place: bytes) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        unmount_fuse(place, is_lazy=True)


def is_served(spec: MountSpec) -> bool:
    """Whether what a spec says is mounted there, and can be read."""
    if not spec.is_native:
        return is_keeper(spec.keeper_pid)
    found = mounted_on(os.fsencode(spec.target))
    return bool(found) and found[-1][0] == b"erofs"


def find_mount(state: Path, target: str) -> tuple[Path, MountSpec] | None:
    """A mount's directory and spec, by where it is read: where it is mounted, or the dataset's directory on a node, of
    which the seq that stands there last is meant."""
    data, name = os.path.split(target)
    slots = os.path.join(data, STATE_DIRECTORY, "lazy", name)
    found = {spec.target: (directory, spec) for directory, spec in all_specs(state)}
    if target in found:
        return found[target]
    standing = [known for known in found if os.path.dirname(os.path.dirname(known)) == slots]
    return found[max(standing, key=lambda known: int(known.split("/")[-2]))] if standing else None


def forget(directory: Path) -> None:
    """What is kept of a mount that has ended goes: one on the cache's file, which no keeper takes away, or one whose
    keeper was killed, which nobody shall wait for any more."""
    spec = read_spec(directory)
    if spec is None or is_served(spec):
        return
    if not spec.is_native:
        forget_device(device_name(str(directory)))
        _detach(os.fsencode(directory / "blob"))
    shutil.rmtree(directory, ignore_errors=True)


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
