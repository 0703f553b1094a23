"""``boxlink launch --local``: nodes of this machine are started."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.engine.release import read_statement
from synclib.errors import Conflict
from tools.cli_context import Context
from tools.fleet.fetched import fetched
from tools.fleet.find_role import find_role
from tools.fleet.local_nodes import Wish, check_wish, is_alive, nodes, start, wanted_node
from tools.fleet.node_file import LocalNode
from tools.fleet.pins import check_pins
from tools.fleet.release_place import parse_release, read_trust
from tools.fleet.rolled_nodes import check_may_start
from tools.fleet.same_node import check_pinned, check_same


@dataclasses.dataclass(frozen=True)
class Trusted:
    """Who may have signed a release: the keys in these files; whether nobody need have."""

    keys: tuple[Path, ...]
    is_unsigned_allowed: bool


def launch_local(
    context: Context, local: Path, names: list[str], wish: Wish, release: str, trusted: Trusted, *, is_dry_run: bool
) -> None:
    """Start those of these nodes that are not up, and say each, and what runs besides of their role. ``release``: NAME
    or NAME@SEQ, whose programs they run; empty for those that run now."""
    check_pins(context.open_store(), wish.pins)
    if is_dry_run:
        _plan(context, local, names, wish, release, trusted)
        return
    if release:
        done = fetched(context, local, release, trusted.keys, is_unsigned_allowed=trusted.is_unsigned_allowed)
        name = f"{done.statement.release}@{done.statement.seq}"
        wish = dataclasses.replace(wish, release=name, release_directory=done.directory, trust=trusted.keys)
    role = find_role(wish.role, wish.release_directory).role
    check_may_start(context, role, names, local)
    told: list[dict[str, object]] = []
    lines: list[str] = []
    for name in names:
        node, is_new = start(local, name, wish, _environ(context), SystemClock(), SystemEntropy())
        told.append({**node.model_dump(mode="json"), "directory": str(node.directory), "is_new": is_new})
        lines.append(f"{node.node}: {', '.join(f'{key} {port}' for key, port in node.ports.items())}")
        context.note(f"boxlink: {node.node} {'started' if is_new else 'is up already'}")
    others = _others(filter(is_alive, nodes(local)), names, role)
    context.emit({"nodes": told, "others": others}, "\n".join([*lines, *_besides(others)]))


def _plan(context: Context, local: Path, names: list[str], wish: Wish, release: str, trusted: Trusted) -> None:
    role = Path(wish.role).stem  # that of a release is known once it was fetched
    if release:
        trust = read_trust(trusted.keys, is_unsigned_allowed=trusted.is_unsigned_allowed)
        trust.check(read_statement(context.open_store(), *parse_release(release)))
    else:
        role = find_role(wish.role, None).role
        for name in names:
            check_wish(local.resolve() / name, wish)
    check_may_start(context, role, names, local)
    up = {node.node: node for node in nodes(local) if is_alive(node)}
    for name in names:
        if name in up:
            if up[name].role != role:
                hint = "name another node, or its role"
                raise Conflict(f"node {name} runs with role {up[name].role}, not {role}", hint=hint)
            if not release:
                wanted = wanted_node(up[name].directory, wish, up[name], SystemClock(), SystemEntropy())
                check_same(up[name], wanted, find_role(wish.role, None).values)
            check_pinned(up[name], wish.pins)
    lines = [f"{name} is up already" if name in up else f"would start {name}" for name in names]
    others = _others(up.values(), names, role)
    planned = {"nodes": [{"node": name, "is_up": name in up} for name in names], "others": others}
    context.emit(planned, "\n".join([*lines, *_besides(others)]))


def _environ(context: Context) -> dict[str, str]:
    environ = {**os.environ, "BOXLINK_STORE": context.url}
    config = os.environ.get("BOXLINK_CONFIG", "boxlink.toml")
    if os.path.exists(config):
        environ["BOXLINK_CONFIG"] = os.path.abspath(config)
    return environ


def _others(up: Iterable[LocalNode], names: list[str], role: str) -> list[str]:
    """Those of a role that run beside these: an upgrade names its nodes anew."""
    return sorted(node.node for node in up if node.role == role and node.node not in names)


def _besides(others: list[str]) -> list[str]:
    return [f"up besides: {', '.join(others)}"] if others else []
