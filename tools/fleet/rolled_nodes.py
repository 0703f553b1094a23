"""What an upgrade is at work on is neither started nor ended beside it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from synclib.core.rollout import State
from synclib.engine.rollout_journal import Journal
from synclib.errors import BoxlinkError, Conflict, Missing, Unavailable
from synclib.store.retry import untried
from tools.cli_context import Context
from tools.cli_engine import open_host


def check_may_start(context: Context, role: str, names: Collection[str], local: Path) -> None:
    """Conflict where an upgrade of ``role`` is about one of these nodes: what that has just ended would start again."""
    try:
        opened = Journal(context.open_store(), open_host(context)).open_of(role)
    except (Missing, Unavailable):
        return  # without a store there is no upgrade
    if opened is None:
        return
    concerned = {spec.node for step in opened.rollout.steps for spec in (step.old, step.new)}
    for name in names:
        if name in concerned:
            again = shlex.join(["boxlink", "upgrade", role, "--local", str(local)])
            raise Conflict(
                f"upgrade {opened.rollout.id} is about {name}, and has not ended",
                hint=f"go on with it: the same {again} … again; or take it back: {again} --abort",
            )


def check_may_end(context: Context, roles: Collection[str], local: Path, *, is_for_good: bool) -> None:
    """Conflict while an upgrade of one of the roles is at work: it would take a node that ends for one that it has to
    replace, and the ones that it starts would stay. ``is_for_good``: also while it is paused, for it may be taken back
    yet."""
    for role in sorted(roles):
        try:
            opened = Journal(untried(context.open_store()), open_host(context)).open_of(role)
        except BoxlinkError:
            continue  # what runs here can be ended without a store, and whatever stands there
        if opened is None:
            continue
        words: Sequence[str] = ["boxlink", "upgrade", role, "--local", str(local)]
        if is_for_good:
            raise Conflict(
                f"upgrade {opened.rollout.id} may need the nodes of role {role} yet",
                hint=f"let it end, or take it back: {shlex.join([*words, '--abort'])}; or --stop without --remove",
            )
        if opened.rollout.state is not State.PAUSED:
            raise Conflict(
                f"upgrade {opened.rollout.id} is at work on the nodes of role {role}",
                hint=f"{shlex.join([*words, '--pause'])} first, or let it end",
            )
