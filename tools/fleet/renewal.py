"""How ``boxlink up`` goes over to a newer release: a process beside the role's waits for one, and then ``up`` becomes
the ``up`` of that release, in its own place.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from synclib.core.role import Role
from synclib.errors import Invalid
from tools.bootstrap.links import CURRENT, linked_seq
from tools.cli_context import Context
from tools.fleet.find_role import Place
from tools.fleet.programs import boxlink_of
from tools.fleet.supervisor import Planned

FOLLOWER = "follow-release"
_STOP_S = 20.0
_SEQ = re.compile(r"[1-9][0-9]{0,17}")


def follower_of(
    role: Role,
    role_name: str,
    place: Place,
    values: Sequence[str],
    environ: Mapping[str, str],
    trust: Sequence[Path],
) -> Planned:
    """The process that waits for a newer release. ``role_name`` and ``values`` as they were given. Invalid where what
    runs is no release that was fetched."""
    release = place.release
    if release is None or not _SEQ.fullmatch(release.name):
        raise Invalid(
            f"role {role.role} follows channel {role.release_channel}, and no release of it runs",
            hint="boxlink release fetch and activate one, then --release DIR/NAME/current",
        )
    if any(process.name == FOLLOWER for process in role.process):
        raise Invalid(f"a process of role {role.role} is called {FOLLOWER}", hint="call it something else")
    command = [str(boxlink_of(release)), "release", "follow", release.parent.name, "--channel", role.release_channel]
    command += ["--running", release.name, "--into", str(release.parent.parent)]
    command += ["--spread", f"{role.release_spread_s:g}", "--node", place.node]
    command += ["--role", role_name, "--data", str(place.data)]
    for value in values:
        command += ["--set", value]
    for path in trust:
        command += ["--trust", str(path.absolute())]
    return Planned(FOLLOWER, command, dict(environ), _STOP_S, is_renewing=True)


def become_newer(context: Context, role: str, place: Place, values: Sequence[str], trust: Sequence[Path]) -> None:
    """Become the ``up`` of the release that is active now. Which seqs of datasets are asked for was written at the
    first start, and stays as it is."""
    assert place.release is not None
    home = place.release.parent
    seq = linked_seq(home, CURRENT)
    release = home / str(seq) if seq is not None else place.release
    program = str(boxlink_of(release))
    words = [program, "up", role, "--data", str(place.data), "--node", place.node, "--release", str(release)]
    for value in values:
        words += ["--set", value]
    for path in trust:
        words += ["--trust", str(path)]
    words += ["--store", context.store_url] if context.store_url else []
    flags = {"--json": context.is_json, "-q": context.is_quiet, "-v": context.is_verbose}
    words += [flag for flag, is_set in flags.items() if is_set]
    # What the one before was given of its own release would be taken for that of the newer one.
    environ = {name: value for name, value in os.environ.items() if name != "BOXLINK_RELEASE"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, words, environ)
