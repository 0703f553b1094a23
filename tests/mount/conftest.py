"""What real mounts need: root, EROFS on plain files, overlays, /dev/fuse. Where one lacks they are skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mounted import Mounted
from tools.lazy_probe import why_not_lazy


@pytest.fixture(scope="session")
def mount_trouble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return why_not_lazy(tmp_path_factory.mktemp("probe"))


@pytest.fixture(autouse=True)
def _can_mount(mount_trouble: str) -> None:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    """Published; what a test mounts of it is unmounted."""
    found = Mounted(tmp_path)
    try:
        yield found
    finally:
        with contextlib.suppress(AssertionError):
            found.unmount("--force")
