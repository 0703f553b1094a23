"""A process that may write no large files (RLIMIT_FSIZE): what is too large is named, and nothing is torn."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from synclib.errors import Full
from tests.e2e.boxlink_process import BOXLINK, Machine
from tests.kit import Content, put, read_tree


def limited(machine: Machine, kilobytes: int, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "-", BOXLINK, *words],
        env=machine.environment,
        cwd=machine.place,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("kilobytes", [0, 1, 8, 64, 512])
def test_restore(tmp_path: Path, kilobytes: int) -> None:
    """Small files, one that is fetched at once, one that is fetched in pieces; an older version stands there."""
    entropy = random.Random(kilobytes)
    machine, source, out = Machine(tmp_path), tmp_path / "source", tmp_path / "out"
    old: Content = {b"small": b"old", b"d": None, b"d/middle": entropy.randbytes(900)}
    new: Content = {
        b"small": b"new",
        b"d": None,
        b"d/middle": entropy.randbytes(30_000),
        b"large": entropy.randbytes(700_000),
        b"pieces": entropy.randbytes(20 << 20),
    }
    machine.run("init")
    for content in (old, new):
        for path, value in content.items():
            put(source, path, value)
        machine.run("publish", "covers", source, "-q")
        if content is old:
            machine.run("restore", "covers", out, "-q")
    code, text = limited(machine, kilobytes, "restore", "covers", str(out))
    assert code == Full.exit_code, text
    assert "Traceback" not in text
    assert "File too large" in text
    assert "ulimit -f" in text
    for path, value in read_tree(out).items():
        assert value in (old.get(path, b""), new[path]), path
    machine.run("restore", "covers", out, "-q")
    assert read_tree(out) == new
    assert not list((out / ".boxlink/tmp").iterdir())
    assert os.path.getsize(out / "pieces") == 20 << 20
