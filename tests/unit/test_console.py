"""What `boxlink up` writes of what its processes say."""

from pathlib import Path

import pytest

from tools.cli_context import Context
from tools.fleet.console import Console
from tools.heard import HEARD_BY, marked


def test_only_boxlinks_own_processes_can_say_that_a_line_is_in_a_log_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getppid", lambda: 17)
    monkeypatch.setenv(HEARD_BY, "17")
    line = marked("hidden").encode()
    assert line != b"hidden"
    console = Console(Context(is_quiet=True), "role", ["own", "other"], tmp_path)
    console.line("own", line, is_own=True)
    console.line("other", line)
    console.close()
    assert (tmp_path / "role-own.log").read_bytes() == b""
    assert (tmp_path / "role-other.log").read_bytes().endswith(b"hidden\n")
