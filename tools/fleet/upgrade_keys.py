"""Which keys an upgrade needs that whoever paused it did not name: the command that is printed has to go on with it.

No journal has them: whoever can write to the store would say whom to trust. So it is tried which keys of the nodes here
a release is signed by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from synclib.core.release import Statement
from synclib.core.rollout import Rollout
from synclib.engine.release import read_statement
from synclib.errors import BoxlinkError, Corrupt, Invalid
from synclib.store.base import Store
from tools.fleet.local_nodes import nodes
from tools.fleet.release_place import parse_release, read_trust
from tools.fleet.upgrade_asked import Asked

UNKNOWN = Path("FILE")  # which key it is only the hint of a refusal says


def trusting(store: Store, asked: Asked, rollout: Rollout) -> Asked:
    """As it was asked, and with the keys that the releases of a rollout need besides. Where no file is known here that
    has one, ``FILE`` stands in its place."""
    for statement in _statements(store, rollout):
        # That one is unsigned is the store's word alone, and no reason to take such.
        if not statement.key or _is_trusted(statement, asked.trust):
            continue
        found = next((path for path in _files(asked) if _is_trusted(statement, (path,))), UNKNOWN)
        if found not in asked.trust:
            asked = replace(asked, trust=(*asked.trust, found))
    return asked


def _statements(store: Store, rollout: Rollout) -> Iterator[Statement]:
    """Of the releases that nodes are started with, be it to go on or to go back; what cannot be read is passed over."""
    specs = [spec for step in rollout.steps for spec in (step.new, step.old)]
    for release in dict.fromkeys(spec.release for spec in specs if spec.release):
        try:
            yield read_statement(store, *parse_release(release))
        except BoxlinkError:
            continue


def _is_trusted(statement: Statement, files: tuple[Path, ...]) -> bool:
    try:
        read_trust(files, is_unsigned_allowed=False).check(statement)
    except Invalid:
        return False
    except Corrupt:
        pass  # no key would help
    return True


def _files(asked: Asked) -> list[Path]:
    """Of the keys that nodes here were launched with."""
    known = [] if asked.local is None else nodes(asked.local)
    return [Path(path) for path in dict.fromkeys(path for node in known for path in node.trust)]
