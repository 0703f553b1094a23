"""Which rung is taken where the kernel refuses one: refusals are the only thing here that is not real."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from synclib.engine.mount import Mode
from tools import lazy_probe
from tools.lazy_probe import Rung, rung_of


def refuse(*_: object) -> None:
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def test_the_best_rung_is_taken_and_nothing_is_left(tmp_path: Path) -> None:
    assert rung_of(tmp_path, with_overlay=True) == Rung(Mode.EROFS, "")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_where_the_kernel_has_no_erofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_probe, "mount_erofs", refuse)
    for with_overlay in (False, True):
        found = rung_of(tmp_path, with_overlay=with_overlay)
        assert found == Rung(Mode.FUSE, "EROFS on a file: No such device")
    assert list(tmp_path.iterdir()) == []


def test_nothing_where_there_is_no_overlay_and_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_probe, "mount_overlay", refuse)
    assert rung_of(tmp_path, with_overlay=False).mode is Mode.EROFS
    found = rung_of(tmp_path, with_overlay=True)
    assert found.mode is None
    assert found.why == "an overlay: No such device; as a FUSE tree: an overlay: No such device"
    assert list(tmp_path.iterdir()) == []
