"""Programs that tests and benchmarks need and that are built from source by Go, once, into ``.cache/bin``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from synclib.errors import Missing

_BUILD_TIMEOUT_S = 900


def install(module: str, cache: Path = Path(".cache/bin")) -> Path:
    """The program of ``module`` (``path@version``); built when it is not there.

    Missing where there is no Go to build it with.
    """
    program = cache.resolve() / module.partition("@")[0].rpartition("/")[2]
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise Missing(f"Go is not installed: {module} cannot be built", hint=f"install Go, or put it at {program}")
    cache.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(program.parent)}
    subprocess.run(["go", "install", module], env=environment, check=True, timeout=_BUILD_TIMEOUT_S)
    return program
