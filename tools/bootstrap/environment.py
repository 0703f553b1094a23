"""The Python environment of a release, made from the wheels that it brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterable
from pathlib import Path

from .failure import Failure

VENV, WHEELS = "venv", "wheels"
_TIMEOUT_S = 900
_WHEEL = re.compile(r"([A-Za-z0-9_.]+)-[^-]+(-[^-]+)?-[^-]+-[^-]+-[^-]+\.whl")  # PEP 427


def make_environment(directory: Path, final: Path, lock: int) -> bool:
    """Make ``directory``/venv, which will run as ``final``/venv once the directory has its name. Whether there was
    anything to make it of. Nothing is asked of any network. ``lock``: a descriptor whose lock keeps others away
    from the directory. What is started here has it, too: nobody begins anew while pip still writes for one who
    was killed."""
    wheels = directory / WHEELS
    names = sorted({found[1] for path in wheels.glob("*.whl") if (found := _WHEEL.fullmatch(path.name))})
    venv = directory / VENV
    if venv.exists():
        shutil.rmtree(venv)
    if not names:
        return False
    # As the interpreter brings it for ensurepip, also where a distribution has moved it; else as the release does, for
    # Debian's Python has none without its package python3-venv. Taken as it lies: to install it takes longer than all
    # the rest.
    moved, usual = sysconfig.get_config_var("WHEEL_PKG_DIR"), str(Path(os.__file__).parent / "ensurepip/_bundled")
    wheel = pip_wheel((moved, usual, str(wheels)))
    without = [] if wheel is None else ["--without-pip"]
    _run([sys.executable, "-I", "-m", "venv", *without, str(venv)], "the environment of the release", lock)
    pip = ["-m", "pip"] if wheel is None else [f"{wheel}/pip"]
    options = ["--isolated", "--quiet", "--disable-pip-version-check"]
    install = ["install", "--no-index", "--only-binary", ":all:", "--no-cache-dir", "--no-compile", "--find-links"]
    python = [str(venv / "bin/python"), "-I"]
    _run([*python, *pip, *options, *install, str(wheels), *names], "the release's wheels", lock)
    # Not by pip, which uses one processor; and as of the directory that tracebacks shall name. What cannot be compiled
    # (some packages bring templates) is no worse for it.
    places = ["-s", str(directory), "-p", str(final), str(venv / "lib")]
    _run([*python, "-m", "compileall", "-q", "-j", "0", *places], "byte code", lock, codes=(0, 1))
    _rename_within(venv, str(directory / VENV), str(final / VENV))
    return True


def pip_wheel(places: Iterable[str | None]) -> Path | None:
    """The newest pip of the first place that has one."""
    found = (path for place in places if place for path in sorted(Path(place).glob("pip-*.whl"), reverse=True))
    return next(found, None)


def _run(command: list[str], what: str, lock: int, codes: Collection[int] = (0,)) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            pass_fds=(lock,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(
            f"{what}: {type(error).__name__}",
            "is Python whole here? Debian's wants python3-venv, or pip's wheel in the release",
        ) from None
    if done.returncode not in codes:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(
            f"{what}: {said[-1] if said else f'code {done.returncode}'}", "is there a wheel for this machine?"
        )


def _rename_within(venv: Path, before: str, after: str) -> None:
    """Scripts and settings name the directory in which they were made (venv's documentation: not portable)."""
    paths = [
        venv / "pyvenv.cfg",
        *(path for path in (venv / "bin").iterdir() if path.is_file() and not path.is_symlink()),
    ]
    for path in paths:
        data = path.read_bytes()
        if (changed := data.replace(os.fsencode(before), os.fsencode(after))) != data:
            path.write_bytes(changed)
