"""The wheel holds all that the command needs: built, installed into a fresh environment, run."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import synclib

ROOT = Path(__file__).parents[2]


def test_wheel_installs_and_runs(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("boxlink-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
    assert run(str(tmp_path / "env/bin/boxlink"), "--version") == f"boxlink, version {synclib.__version__}\n"
    # What is no Python: the roles, and the sources that the bootstrap is made of.
    run(str(tmp_path / "env/bin/boxlink"), "up", "proxy", "--systemd", str(tmp_path / "units"))
    run(str(tmp_path / "env/bin/boxlink"), "bootstrap", "--write", str(tmp_path / "bootstrap.pyz"))
    assert "usage" in run(str(python), "-I", str(tmp_path / "bootstrap.pyz"), "--help")


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
