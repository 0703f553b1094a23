"""What a machine and a store can do, found by doing it."""

from __future__ import annotations

import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.engine.host import Host
from synclib.engine.mount import Mode
from synclib.engine.workers import worker_count
from synclib.errors import BoxlinkError, Invalid, Missing, Unavailable, Unsupported
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Store
from synclib.store.probe import probe_conditional_writes
from tools.lazy_probe import Rung, rung_of
from tools.mount_control import ask
from tools.mount_spec import all_specs
from tools.mounted import is_served

_DESCRIPTORS_MIN = 256
_FREE_BYTES_MIN = 64 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``hint`` where something can be done."""

    what: str
    is_good: bool
    found: str
    hint: str = ""
    exit_code: int = Invalid.exit_code
    # Of what can be done in several ways: the best one here, and why not a better one.
    mode: str = ""
    why: str = ""


def check_machine(host: Host) -> list[Finding]:
    """Processors, descriptors, and the directories that state and caches are in."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [
        Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.release()}"),
        Finding("processors", True, f"{worker_count()} for worker processes"),
        Finding(
            "open files", soft >= _DESCRIPTORS_MIN, f"at most {soft}", "" if soft >= 256 else "ulimit -n 1024 or more"
        ),
        _check_directory("state", host.state),
        _check_directory("cache", host.cache),
        _check_lazy(host.state),
        *_check_mounts(host.state),
    ]


def _check_lazy(directory: Path) -> Finding:
    """How datasets can stand here; to restore them is always possible."""
    try:
        rung = rung_of(directory, with_overlay=False)
    except OSError as error:
        rung = Rung(None, error.strerror or str(error))
    if rung.mode is None:
        found = f"no, datasets are restored, or read in-process: {rung.why}"
    elif rung.mode is Mode.FUSE:
        found = f"datasets can be mounted, as FUSE trees: {rung.why}"
    else:
        found = "datasets can be mounted"
    return Finding("lazy", True, found, mode=str(rung.mode or "reader"), why=rung.why)


def _check_mounts(state: Path) -> Iterator[Finding]:
    """Each mount of this node, asked by its control socket: the mount itself, which may hang, is not touched."""
    for directory, spec in all_specs(state):
        what = f"mount {spec.place}"
        if spec.is_native:
            if is_served(spec):
                yield Finding(what, True, f"seq {spec.prepared.seq}, every byte is here, nothing runs")
            continue
        if not is_served(spec):
            hint = f"boxlink umount --force {spec.place}, then mount it again: what was fetched is kept"
            yield Finding(what, False, "nobody serves it", hint, Unavailable.exit_code)
            continue
        figures = ask(directory)
        if figures is None:
            hint = f"its keeper replaces it within 30 s; its log is {directory / 'log'}; boxlink remount {spec.place}"
            yield Finding(what, False, "its worker does not answer", hint, Unavailable.exit_code)
            continue
        found = f"seq {spec.prepared.seq}, {figures['hydrated_percent']} % here, {figures['errors']} reads failed"
        yield Finding(what, True, f"{found}, {figures['restarts']} workers died")


def _check_directory(what: str, path: Path) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path) as file:
            file.write(b"x")
            file.flush()
            can_clone = _can_clone(file.fileno(), path)
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Finding(what, False, f"{path} cannot be written: {error.strerror}", "check its owner, rights and space")
    found = f"{path}: {free >> 20} MiB free, files are {'cloned' if can_clone else 'copied'}"
    return Finding(what, free >= _FREE_BYTES_MIN, found, "" if free >= _FREE_BYTES_MIN else "make room")


def _can_clone(descriptor: int, directory: Path) -> bool:
    """Whether the file system shares bytes between files (FICLONE, linux/fs.h)."""
    import fcntl

    ficlone = 0x40049409
    with tempfile.TemporaryFile(dir=directory) as other:
        try:
            fcntl.ioctl(other.fileno(), ficlone, descriptor)
        except OSError:
            return False
    return True


def check_store(store: Store) -> list[Finding]:
    """That it answers, how fast, that it was initialised, and that it honours conditional writes."""
    findings: list[Finding] = []
    waits: list[float] = []
    is_ready = True
    for _ in range(3):
        started = time.monotonic()
        try:
            store.get(STORE_KEY, size_max=1 << 16)
        except Missing:
            is_ready = False
        waits.append(time.monotonic() - started)
    findings.append(Finding("store", True, f"{store.url} answers in {min(waits) * 1000:.1f} ms"))
    hint = "" if is_ready else f"boxlink init --store {store.url}"
    findings.append(Finding("initialised", is_ready, "yes" if is_ready else "not yet", hint, Missing.exit_code))
    try:
        probe_conditional_writes(store, SystemClock(), SystemEntropy())
        findings.append(Finding("conditional writes", True, "honoured"))
    except Unsupported as error:
        findings.append(Finding("conditional writes", False, error.message, error.hint, error.exit_code))
    except BoxlinkError as error:
        found = f"could not be probed: {error.message}"
        findings.append(Finding("conditional writes", False, found, error.hint, error.exit_code))
    return findings
