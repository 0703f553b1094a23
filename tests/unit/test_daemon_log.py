from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from synclib.errors import Invalid
from tools.daemon_log import RotatingFile, open_log


def test_lines_are_json_and_levels_count(tmp_path: Path) -> None:
    log = open_log("render", tmp_path / "log", False)
    log.debug("not shown")
    log.info("shown", seq=3, path=b"\xff")
    try:
        raise ValueError("x")
    except ValueError:
        log.error("failed", exc_info=True)
    lines = [json.loads(line) for line in (tmp_path / "log" / f"render-{os.getpid()}.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["shown", "failed"]
    assert (lines[0]["level"], lines[0]["seq"], lines[0]["role"]) == ("info", 3, "render")
    assert "ValueError: x" in lines[1]["exception"]


def test_rotation_keeps_whole_lines_and_a_bounded_number_of_files(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "a.log", bytes_max=1000, files_kept=3)

    def write(letter: str) -> None:
        for number in range(100):
            file.write_line(letter * 20 + f"{number:03}")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["a.log", "a.log.1", "a.log.2"]
    for name in found:
        text = (tmp_path / name).read_text()
        assert len(text) <= 1000
        assert all(len(line) == 23 and line[:20] == line[0] * 20 for line in text.splitlines())
    file.close()


def test_a_full_disk_loses_lines_but_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RotatingFile(Path("/dev/full"))
    file.write_line("a")
    file.write_line("b")
    assert file.lost_count == 2
    assert capsys.readouterr().err.count("log lines are being lost") == 1


def test_nor_does_one_that_takes_no_warning_either() -> None:
    """As on a launched node, whose stderr is a file on the same disk."""
    code = (
        "from pathlib import Path; from tools.daemon_log import RotatingFile; f = RotatingFile(Path('/dev/full'));"
        "f.write_line('a'); f.write_line('b'); print(f.lost_count)"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.stdout == b"2\n"


def test_a_log_that_cannot_be_opened_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(Invalid):
        open_log("render", tmp_path / "log", False)
