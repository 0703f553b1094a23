"""What real mounts need: root, EROFS on plain files, overlays, /dev/fuse. Where one lacks they are skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.core.erofs import ImageBuilder
from synclib.disk.mounts import mount_erofs, mount_overlay, unmount


def why_not(place: Path) -> str:
    """Why this machine cannot mount, found by doing it; empty when it can."""
    if os.geteuid() != 0:
        return "not root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse"
    builder = ImageBuilder(1, bytes(16))
    with open(place / "image", "wb") as image:
        for at, data in builder.build([]):
            image.seek(at)
            image.write(data)
    (place / "blob").write_bytes(bytes(4096))
    paths = [os.fsencode(place / name) for name in ("seq", "upper", "work", "view")]
    for path in paths:
        os.mkdir(path)
    try:
        mount_erofs(os.fsencode(place / "image"), os.fsencode(place / "blob"), paths[0])
    except OSError as error:
        return f"EROFS on a file: {error.strerror}"
    try:
        mount_overlay(paths[0], paths[1], paths[2], paths[3])
        unmount(paths[3])
    except OSError as error:
        return f"an overlay: {error.strerror}"
    finally:
        unmount(paths[0])
    return ""


@pytest.fixture(scope="session")
def mount_trouble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return why_not(tmp_path_factory.mktemp("probe"))


@pytest.fixture(autouse=True)
def _can_mount(mount_trouble: str) -> None:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
