"""Upgrade in place to another boxlink, and back: a program of its own, whose specs have members that this one lacks."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

import synclib
from tests.e2e.boxlink_process import end_session
from tests.mount.mounted import Mounted
from tests.mount.test_upgrade import Readers

HERE = Path(synclib.__file__).parent.parent
NEWER = "9.9.9"


def newer_boxlink(place: Path) -> Path:
    """A venv's interpreter with a later boxlink: another version; specs of mounts have more members, in two places."""
    code = place / "code"
    for name in ("synclib", "tools", "render", "proxy"):
        shutil.copytree(HERE / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    _change(code / "synclib/__init__.py", r'__version__ = "[^"]*"', f'__version__ = "{NEWER}"')
    _change(code / "tools/mount_spec.py", r'    put_on: str = ""\n', '    put_on: str = ""\n    later: str = "later"\n')
    _change(
        code / "synclib/engine/mount.py",
        r"    published_at_ns: int = 0\n",
        "    published_at_ns: int = 0\n    later: tuple[int, ...] = (1, 2)\n",
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    (packages,) = (place / "venv/lib").glob("python*/site-packages")
    (packages / "boxlink.pth").write_text("\n".join([str(code), *site.getsitepackages()]))
    return place / "venv/bin/python"


def _change(path: Path, old: str, new: str) -> None:
    text, count = re.subn(old, lambda _: new, path.read_text())
    assert count == 1, path
    path.write_text(text)


def remount_by(mounted: Mounted, python: Path) -> None:
    command = [python, "-c", "from tools.entry import main; main()", "remount", mounted.target]
    process = subprocess.Popen(
        command, env=mounted.machine.environment, cwd=mounted.machine.place, start_new_session=True
    )
    try:
        assert process.wait(120) == 0
    finally:
        end_session(process)


@pytest.mark.parametrize("mode", ["erofs", "fuse"])
def test_another_version_takes_over_and_gives_back(mounted: Mounted, tmp_path: Path, mode: str) -> None:
    keeper = mounted.mount("--mode", mode)["keeper"]
    newer = newer_boxlink(tmp_path / "newer")
    (spec,) = (tmp_path / "state/boxlink/mount").glob("*/mount.json")
    with Readers(mounted) as readers:
        readers.read_more()
        for python, version in ((newer, NEWER), (Path(sys.executable), synclib.__version__)):
            remount_by(mounted, python)
            (row,) = mounted.machine.json("status")["mounts"]
            assert (row["version"], row["keeper"], row["state"]) == (version, keeper, "serving")
            assert ("later" in spec.read_text()) == (python == newer)
            mounted.drop_page_cache()
            readers.read_more()
    assert readers.wrong == []
    mounted.assert_same()
