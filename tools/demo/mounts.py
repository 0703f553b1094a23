"""The mounts of a node outlive its daemon; the demo leaves none behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, mounted_on, unmount


def end_mounts(data: Path, boxlink: Callable[..., dict[str, Any]]) -> None:
    """Take away what is mounted on the datasets below ``data``, then what serves it. ``boxlink`` runs a verb."""
    if not any(data.glob(".boxlink/lazy/*/*/seq")):
        return
    for directory in data.iterdir():
        while mounted_on(os.fsencode(directory)):
            unmount(os.fsencode(directory), MNT_DETACH | UMOUNT_NOFOLLOW)
    for mount in boxlink("status")["mounts"]:
        boxlink("umount", "--force", mount["directory"])
