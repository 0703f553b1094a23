"""Taking away what ``boxlink sync`` has mounted on a dataset's directory, also where no sync runs any more.

See synclib/engine/lazy_place.py for what lies where. The mount goes first, then what is known of it, then the seqs'
own mounts: killed in between, the same again goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from synclib.core.names import STATE_DIRECTORY
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, escaped, mounted_on, unmount
from synclib.engine.host import Host
from synclib.errors import Conflict, Missing
from tools.mounting import end_mount


def end_standing(host: Host, directory: Path, *, is_forced: bool) -> str | None:
    """The dataset's directory; None where nothing of a sync is mounted there. Conflict while files are open in it,
    unless forced: then who reads gets an error."""
    parent, name = os.path.split(os.path.abspath(directory))
    data = os.path.realpath(parent)
    target, home = os.path.join(data, name), Path(data) / STATE_DIRECTORY / "lazy" / name
    slots = _slots(home)
    if not slots:
        return None
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if is_forced else 0)
    while _is_of(target, slots):
        try:
            unmount(os.fsencode(target), flags)
        except OSError as error:
            raise Conflict(
                f"it cannot be unmounted: {error.strerror}", hint="close what is open there, or --force", path=target
            ) from error
    (home / "state.json").unlink(missing_ok=True)
    for slot in slots:
        with contextlib.suppress(Missing):
            end_mount(host, str(slot / "seq"), is_forced=is_forced)
        if not mounted_on(os.fsencode(slot / "seq")):
            shutil.rmtree(slot, ignore_errors=True)
    return target


def _slots(home: Path) -> list[Path]:
    """What is in them is not looked at: it may not answer."""
    with contextlib.suppress(OSError):
        return sorted(Path(item.path) for item in os.scandir(home) if item.name.isdigit())
    return []


def _is_of(target: str, slots: list[Path]) -> bool:
    """Whether what is on top there is the overlay of one of the slots."""
    found = mounted_on(os.fsencode(target))
    lower = {b"lowerdir=" + escaped(os.fsencode(slot / "seq")) for slot in slots}
    return bool(found) and found[-1][0] == b"overlay" and not lower.isdisjoint(found[-1][1].split(b","))
