"""What real mounts need: root, and a kernel with EROFS on plain files and /dev/fuse. Else they are skipped."""

from __future__ import annotations

import os

import pytest


def why_not() -> str:
    """Why this machine cannot mount; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    with open("/proc/filesystems") as file:
        known = file.read().split()
    if "erofs" not in known:
        return "the kernel has no EROFS"
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    return ""


@pytest.fixture(autouse=True)
def _can_mount() -> None:
    if reason := why_not():
        pytest.skip(f"real mounts: {reason}")
