"""What `boxlink up` notes of itself beside a node's data."""

import errno
from pathlib import Path

import pytest

from synclib.core.names import FOLLOWED
from tools.fleet import one_up


def test_a_full_disk_keeps_no_node_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".boxlink").mkdir()
    one_up.note_followed(tmp_path, "render", "stable")
    (note,) = (tmp_path / ".boxlink").glob(f"*{FOLLOWED}")
    assert note.read_text() == "stable\n"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(one_up, "write_atomic", full)
    one_up.note_followed(tmp_path, "render", "canary")
    one_up.note_followed(tmp_path, "render", "")
    assert not note.exists()
