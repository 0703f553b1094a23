"""Releases on this machine that nobody needs any more: away with them, and with the boot tars beside them.

Kept are the one that runs and the one before (for a rollback at once), what is newer than the one that runs (it was
fetched to be activated, or ran and may again), and whatever a process of this machine still uses. A release is renamed
to ``<seq>.gone`` before anything in it goes, so that one that is half gone never stands there as a release.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from synclib.core.names import check_dataset
from synclib.disk.atomic import fsync_directory
from synclib.disk.faults import disk_errors
from tools.bootstrap.links import CURRENT, PREVIOUS, SEQ, back_path, linked_seq, ran_path
from tools.bootstrap.whole import whole_path
from tools.fleet.installed import installed_path
from tools.fleet.release_place import existing, seqs, statement_path

_GONE = ".gone"
_LEFT = re.compile(r"([0-9]{1,18})\.(partial|tar\.gz|gone)")
# Of /proc/<pid> what tells where programs, their modules and their directories are; of others only root reads all.
_TOLD = ("cmdline", "environ", "maps")
_LINKED = ("cwd", "exe")
_TOLD_BYTES_MAX = 8 << 20


@dataclass
class Pruned:
    """``gone``: seqs that went, or would go. ``kept``: why others stay. ``bytes``: what those that went took."""

    gone: list[int] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    bytes: int = 0


def prune(name: str, into: Path, *, is_dry_run: bool) -> Pruned:
    """Of a release; Missing where none was fetched here."""
    place = into.absolute() / check_dataset(name)
    with disk_errors(), existing(place):
        done = _decide(place)
        paths = [place / str(seq) for seq in done.gone] + list(_left(place, linked_seq(place, CURRENT)))
        done.bytes = sum(map(_bytes_of, paths))
        if not is_dry_run:
            for path in paths:
                _remove(place, path)
            fsync_directory(place)
        return done


def _decide(place: Path) -> Pruned:
    here, running, before = seqs(place), linked_seq(place, CURRENT), linked_seq(place, PREVIOUS)
    done, in_use = Pruned(), used(place)
    for seq in here:
        if seq == running:
            done.kept[seq] = "it runs"
        elif seq == before:
            done.kept[seq] = "it ran before"
        elif running is None or seq > running:
            has_run = ran_path(place, seq).exists()
            done.kept[seq] = "it ran, until an older one was taken" if has_run else "not activated yet"
        elif seq in in_use:
            done.kept[seq] = f"process {in_use[seq]} uses it"
        else:
            done.gone.append(seq)
    return done


def used(place: Path) -> dict[int, int]:
    """Seqs of a release that processes use, each with one of their pids."""
    wanted = re.compile(b"%s/([0-9]{1,18})(?![0-9.])" % re.escape(os.fsencode(os.path.realpath(place))))
    found: dict[int, int] = {}
    for item in os.listdir("/proc"):
        if item.isdigit():
            for text in _told_of(f"/proc/{item}"):
                found.update((int(seq), int(item)) for seq in wanted.findall(text))
    return found


def _told_of(process: str) -> Iterator[bytes]:
    for name in _TOLD:
        with contextlib.suppress(OSError), open(f"{process}/{name}", "rb") as file:
            yield file.read(_TOLD_BYTES_MAX)
    for name in _LINKED:
        with contextlib.suppress(OSError):
            yield os.fsencode(os.readlink(f"{process}/{name}"))


def _left(place: Path, running: int | None) -> Iterator[Path]:
    """What a first boot unpacked, a fetch began, or a removal did not end. What is newer than the one that runs may be
    gone on with."""
    for path in sorted(place.iterdir()):
        match = _LEFT.fullmatch(path.name)
        if match and (match[2] == "gone" or (running is not None and int(match[1]) <= running)):
            yield path


def _bytes_of(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_blocks * 512
    with os.scandir(path) as listing:
        items = [Path(item.path) for item in listing]
    return sum(map(_bytes_of, items))


def _remove(place: Path, path: Path) -> None:
    if SEQ.fullmatch(path.name):
        gone = path.with_name(path.name + _GONE)
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        statement_path(place, int(path.name)).unlink(missing_ok=True)
        installed_path(place, int(path.name)).unlink(missing_ok=True)
        ran_path(place, int(path.name)).unlink(missing_ok=True)
        back_path(place, int(path.name)).unlink(missing_ok=True)
        whole_path(place, int(path.name)).unlink(missing_ok=True)
        path = gone
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
