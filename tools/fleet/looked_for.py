"""Where ``boxlink upgrade`` looks for nodes, said when none is there: those of this machine are named by --local."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from synclib.core.rollout import Rollout
from synclib.errors import Invalid, Missing, Unavailable
from tools.fleet.upgrade_asked import Asked

_HERE = "nodes that were launched with --local DIR on a machine need --local DIR here too"
_THERE = "instances of EC2 are upgraded without --local"


def none_found(asked: Asked, others: Sequence[str], telling: Sequence[str]) -> Missing:
    """``others``: what is there besides where they were looked for. ``telling``: nodes of the role that lately told
    the store how they do: they are elsewhere."""
    if asked.local is None:
        error = Missing(f"no instance of role {asked.role} and this store runs {_in_region(asked.region)}", hint=_HERE)
    else:
        error = Missing(f"no node of role {asked.role} runs below {asked.local}", hint=_THERE)
    if others:
        error.hint += f"; there are: {', '.join(others)}"
    if telling:
        error.hint += f"; of role {asked.role} these run somewhere, as they told the store: {', '.join(telling)}"
    else:
        error.hint += "; boxlink launch ROLE starts one"
    return error


@contextlib.contextmanager
def telling_where(asked: Asked) -> Iterator[None]:
    """Who cannot be asked for instances is told that instances were meant."""
    try:
        yield
    except (Invalid, Unavailable) as error:
        if asked.local is None:
            error.hint = "; ".join(filter(None, (error.hint, f"instances of EC2 are looked for: {_HERE}")))
        raise


def way_to(rollout: Rollout) -> str:
    """How whoever is told that a rollout is of nodes elsewhere gets to them."""
    where, is_local, directory = rollout.place.partition(":")
    if is_local:
        return f"go on with it there: on {where}, with --local {directory}"
    return f"go on with it there: without --local, {_in_region(where.removeprefix('ec2').strip())}"


def _in_region(region: str) -> str:
    return f"in region {region}" if region else "in EC2"
