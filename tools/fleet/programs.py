"""Which file a role's ``run`` names: ``boxlink`` is the release's, else the one that runs now."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from synclib.core.role import Process
from synclib.errors import Missing
from tools.fleet.find_role import Place

BOXLINK = "boxlink"


def command_of(process: Process, place: Place, environment: Mapping[str, str]) -> list[str]:
    """What is executed for a process. Missing where there is no such program."""
    name, *words = process.run
    program = boxlink_of(place.release) if name == BOXLINK else shutil.which(name, path=environment.get("PATH"))
    if program is None:
        raise Missing(
            f"process {process.name}: there is no program {name}", hint="install it, or correct the role's run"
        )
    return [str(program), *words]


def boxlink_of(release: Path | None) -> Path:
    """The ``boxlink`` of a release that has one of its own, else that of our own interpreter."""
    own = Path(sys.executable).parent / BOXLINK
    if release is not None and (release / "venv/bin" / BOXLINK).exists():
        return release / "venv/bin" / BOXLINK
    return own
