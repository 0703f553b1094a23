"""How this machine can mount datasets lazily, found by doing it: the rungs of the ladder, the best first."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from synclib.core.erofs import BLOCK_BYTES, ImageBuilder
from synclib.disk.fuse_mount import mount_fuse, unmount_fuse
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mount_erofs, mount_overlay, unmount
from synclib.engine.mount import Mode


@dataclass(frozen=True)
class Rung:
    """``mode``: the best way that there is; None where nothing can be mounted. ``why``: why not a better one."""

    mode: Mode | None
    why: str


def rung_of(directory: Path, *, with_overlay: bool) -> Rung:
    """What can be mounted below ``directory``; ``with_overlay``: also where an overlay is to lie over it."""
    why = why_not_lazy(directory, with_overlay=with_overlay)
    if not why:
        return Rung(Mode.EROFS, "")
    why_no_tree = why_not_tree(directory, with_overlay=with_overlay)
    return Rung(None, f"{why}; as a FUSE tree: {why_no_tree}") if why_no_tree else Rung(Mode.FUSE, why)


def why_not_lazy(directory: Path, *, with_overlay: bool = True) -> str:
    """Mounts an empty image and an overlay of it in a directory of its own below ``directory``, and takes both away;
    what was in the way, or nothing."""
    if os.geteuid() != 0:
        return "not root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as place:
        return _try_erofs(Path(place), with_overlay=with_overlay)


def why_not_tree(directory: Path, *, with_overlay: bool = False) -> str:
    """As :func:`why_not_lazy` for a FUSE tree, which nobody serves meanwhile."""
    with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as place:
        if with_overlay:
            lower = Path(place) / "lower"
            lower.mkdir()
            if reason := _try_overlay(Path(place), lower):
                return reason
        target = os.fsencode(Path(place) / "tree")
        os.mkdir(target)
        try:
            # To close the connection is to end it: nobody can come to wait for it.
            os.close(mount_fuse(target, allow_other=False))
        except OSError as error:
            return error.strerror or str(error)
        with contextlib.suppress(OSError):
            unmount_fuse(target, is_lazy=True)
    return ""


def _try_erofs(place: Path, *, with_overlay: bool) -> str:
    image, device = place / "image", place / "blob"
    builder = ImageBuilder(1, bytes(16))
    with open(image, "wb") as file:
        for at, data in builder.build([]):
            file.seek(at)
            file.write(data)
    device.write_bytes(bytes(BLOCK_BYTES))
    seq = place / "seq"
    seq.mkdir()
    try:
        mount_erofs(os.fsencode(image), os.fsencode(device), os.fsencode(seq))
    except OSError as error:
        return f"EROFS on a file: {error.strerror}"
    try:
        return _try_overlay(place, seq) if with_overlay else ""
    finally:
        unmount(os.fsencode(seq), MNT_DETACH | UMOUNT_NOFOLLOW)


def _try_overlay(place: Path, lower: Path) -> str:
    upper, work, view = (os.fsencode(place / name) for name in ("upper", "work", "view"))
    for path in (upper, work, view):
        os.mkdir(path)
    try:
        mount_overlay(os.fsencode(lower), upper, work, view)
    except OSError as error:
        return f"an overlay: {error.strerror}"
    unmount(view, MNT_DETACH | UMOUNT_NOFOLLOW)
    return ""
