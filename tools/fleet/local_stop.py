"""``boxlink launch --stop``: local nodes drain and end, and are taken away if so asked."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from synclib.core.names import node_key, swap_key
from synclib.errors import Conflict, Missing, Partial
from tools.cli_context import Context
from tools.cli_engine import open_host
from tools.fleet.fetched import RELEASES
from tools.fleet.local_nodes import is_alive, nodes, remove, stop
from tools.fleet.local_volumes import release_volumes, volumes_of
from tools.fleet.node_file import LocalNode
from tools.fleet.rolled_nodes import check_may_end

STOP_S = 150.0  # longer than the built-in roles take


def stop_local(
    context: Context, local: Path, role: str, names: Sequence[str] | None, *, is_removed: bool, is_dry_run: bool
) -> None:
    """Let nodes below ``local`` end, the last one first, and say each, and which of others run on. ``names``: of which
    nodes; None: all of ``role``, whatever an upgrade has named them. ``is_removed``: what they have here, and said of
    themselves in the store, goes too. Partial where one had to be killed, or something is left."""
    known = {node.node: node for node in nodes(local)}
    chosen = _of_role(known, local, role) if names is None else _named(known, local, role, names)
    check_may_end(context, {node.role for node in chosen}, local, is_for_good=is_removed)
    if is_removed:
        _check_stores(context, chosen)
    up = {node.node for node in known.values() if is_alive(node)}
    told: list[dict[str, object]] = []
    lines: list[str] = []
    for node in reversed(chosen):
        was_up = node.node in up
        if was_up and not is_dry_run:
            context.note(f"boxlink: {node.node} drains")
        drained = is_dry_run or stop(node, STOP_S)
        row: dict[str, object] = {"node": node.node, "was_up": was_up, **({} if is_dry_run else {"drained": drained})}
        said = _what_became(was_up=was_up, drained=drained, is_dry_run=is_dry_run)
        if is_removed:
            left = [] if is_dry_run else _take_away(context, node)
            row |= {} if is_dry_run else {"removed": not left, "left": left}
            said += f", and {_what_went(left, is_dry_run=is_dry_run)}"
        told.append(row)
        lines.append(f"{node.node} {said}")
    if is_removed and not is_dry_run and not nodes(local):
        shutil.rmtree(local / RELEASES, ignore_errors=True)  # nobody runs them any more
    others = sorted(up - {node.node for node in chosen})
    if others:
        lines.append(f"up as before: {', '.join(others)}")
    context.emit({"nodes": told, "others": others}, "\n".join(lines))
    if not all(row.get("drained", True) and row.get("removed", True) for row in told):
        raise click.exceptions.Exit(Partial.exit_code)


def _check_stores(context: Context, chosen: Sequence[LocalNode]) -> None:
    """Conflict for one of another store: what a namesake of it says of itself there is not its own."""
    for node in chosen:
        if node.store and node.store.rstrip("/") != context.url.rstrip("/"):
            raise Conflict(
                f"node {node.node} is of store {node.store}, not of {context.url}",
                hint=f"--store {node.store}",
                path=str(node.directory),
            )


def _take_away(context: Context, node: LocalNode) -> list[str]:
    """What is left, for a person; its logs in the store stay."""
    host, store = open_host(context), context.open_store()
    # First: once its directory is gone nothing here names it.
    store.delete(node_key(node.node))
    store.delete(swap_key(node.node))
    return remove(node, functools.partial(release_volumes, volumes_of(context, host, node), store.url, node))


def _what_went(left: Sequence[str], *, is_dry_run: bool) -> str:
    if is_dry_run:
        return "would be taken away"
    return f"is not taken away, for these are left: {', '.join(left)}" if left else "taken away"


def _is_of(node: LocalNode, role: str) -> bool:
    """``role``: as for a launch: a name, or a file."""
    return node.role_file == str(Path(role).resolve()) or node.role == Path(role).stem


def _of_role(known: dict[str, LocalNode], local: Path, role: str) -> list[LocalNode]:
    name = Path(role).stem
    found = [node for node in known.values() if _is_of(node, role)]
    if not found:
        hint = f"there are: {_rows(known)}" if known else "nothing was launched there"
        raise Missing(f"there is no node of role {name}", path=str(local), hint=hint)
    return found


def _named(known: dict[str, LocalNode], local: Path, role: str, names: Sequence[str]) -> list[LocalNode]:
    for name in names:
        if name in known and not _is_of(known[name], role):
            raise Conflict(
                f"node {name} is of role {known[name].role}, not {role}", path=str(local), hint="name its role"
            )
        if name not in known:
            hint = (
                f"there are: {_rows(known)}; without --count and --node all of the role end"
                if known
                else "nothing was launched there"
            )
            raise Missing(f"there is no node {name}", path=str(local), hint=hint)
    return [known[name] for name in names]


def _rows(known: dict[str, LocalNode]) -> str:
    return ", ".join(f"{node.node} (role {node.role})" for node in known.values())


def _what_became(*, was_up: bool, drained: bool, is_dry_run: bool) -> str:
    if not was_up:
        return "was not up"
    if is_dry_run:
        return "would be stopped"
    return "stopped" if drained else f"was killed: it did not end within {STOP_S:.0f} s"
