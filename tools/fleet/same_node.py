"""Whether a node that is up is the one that is wanted: it is not changed under who reads there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from synclib.errors import Conflict
from tools.fleet.node_file import LocalNode
from tools.fleet.pins import read_pins


def check_same(running: LocalNode, wanted: LocalNode, defaults: Mapping[str, str]) -> None:
    """Conflict where a node that is up is another than is wanted. ``defaults``: the values of the role, which a set one
    takes the place of, so that to set what the role has is no change."""
    for what in ("role", "role_file", "release"):
        is_there, is_wanted = getattr(running, what), getattr(wanted, what)
        if is_there != is_wanted:
            unsaid = what == "release" and not is_wanted
            raise Conflict(
                f"node {running.node} runs with {what} {is_there or 'none'}, not {is_wanted or 'none'}",
                hint=f"name it as it is: --release {is_there}" if unsaid else "stop it first, or start another node",
                path=str(running.directory),
            )
    # An address that a newer boxlink's role has, or has no more, is none that anybody set.
    gained_or_lost = (running.addresses.keys() ^ wanted.addresses.keys()) - running.values.keys() - wanted.values.keys()
    there, meant = ({**defaults, **node.addresses, **node.values} for node in (running, wanted))
    others = sorted(
        name for name in {*there, *meant} if there.get(name) != meant.get(name) and name not in gained_or_lost
    )
    if others:
        raise _of_other_values(running, others, there, meant, [name for name in others if name not in wanted.values])


def _of_other_values(
    running: LocalNode, others: list[str], there: Mapping[str, str], meant: Mapping[str, str], unsaid: list[str]
) -> Conflict:
    """``unsaid``: which of them nobody has set now."""
    stands = ", ".join(f"{name}={there.get(name)}" for name in others)
    wished = ", ".join("what the role has" if name in unsaid else f"{name}={meant[name]}" for name in others)
    if unsaid:
        hint = f"name it as it is: {_sets(unsaid, there)}"
    else:
        place = shlex.quote(str(running.directory.parent))
        hint = f"boxlink upgrade {running.role} --local {place} {_sets(others, meant)} rolls all to it"
    return Conflict(f"node {running.node} is up with {stands}, not {wished}", hint=hint, path=str(running.directory))


def _sets(names: list[str], values: Mapping[str, str]) -> str:
    return shlex.join(word for name in names for word in ("--set", f"{name}={values[name]}"))


def check_pinned(running: LocalNode, pins: Mapping[str, int]) -> None:
    """Conflict where a node that is up stands at another seq than one of these, or at none. A dataset that ``pins``
    does not name may be anywhere."""
    there = read_pins(running.data)
    for dataset, seq in pins.items():
        if there.get(dataset) != seq:
            stands = f"stays at seq {there[dataset]}" if dataset in there else "stays at no seq"
            place = shlex.quote(str(running.directory.parent))
            raise Conflict(
                f"node {running.node} is up, and {stands} of {dataset}, not at seq {seq}",
                hint=f"boxlink upgrade {running.role} --local {place} --seq {dataset}={seq} rolls all to it",
                path=str(running.directory),
            )
