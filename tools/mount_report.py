"""How a node's mounts do, for what it says of itself in the store."""

from __future__ import annotations

import os
from pathlib import Path

from synclib.engine.report import MountFigures
from tools.mount_control import ask
from tools.mount_spec import all_specs


def mount_figures(state: Path, data: Path) -> dict[str, MountFigures]:
    """Of the mounts below a data directory, by dataset; one that does not answer is left out."""
    top = os.path.realpath(data) + os.sep
    found: dict[str, MountFigures] = {}
    for directory, spec in all_specs(state):
        if not spec.target.startswith(top):
            continue
        name = spec.prepared.root.partition("/")[2]
        if spec.is_native:
            found[name] = MountFigures(1.0)
        elif (figures := ask(directory)) is not None:
            hydrated = float(figures["hydrated_percent"]) / 100
            found[name] = MountFigures(hydrated, int(figures["reads"]), int(figures["errors"]))
    return found
