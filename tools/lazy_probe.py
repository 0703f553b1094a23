"""Whether this machine can mount datasets lazily, found by doing it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from synclib.core.erofs import BLOCK_BYTES, ImageBuilder
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mount_erofs, mount_overlay, unmount


def why_not_lazy(directory: Path) -> str:
    """Mounts an empty image and an overlay of it in a directory of its own below ``directory``, and takes both away;
    what was in the way, or nothing."""
    if os.geteuid() != 0:
        return "not root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as place:
        return _try_mounts(Path(place))


def _try_mounts(place: Path) -> str:
    image, device = place / "image", place / "blob"
    builder = ImageBuilder(1, bytes(16))
    with open(image, "wb") as file:
        for at, data in builder.build([]):
            file.seek(at)
            file.write(data)
    device.write_bytes(bytes(BLOCK_BYTES))
    seq, upper, work, view = (os.fsencode(place / name) for name in ("seq", "upper", "work", "view"))
    for path in (seq, upper, work, view):
        os.mkdir(path)
    try:
        mount_erofs(os.fsencode(image), os.fsencode(device), seq)
    except OSError as error:
        return f"EROFS on a file: {error.strerror}"
    try:
        mount_overlay(seq, upper, work, view)
    except OSError as error:
        return f"an overlay: {error.strerror}"
    finally:
        for path in (view, seq):
            with contextlib.suppress(OSError):
                unmount(path, MNT_DETACH | UMOUNT_NOFOLLOW)
    return ""
