"""The roles that boxlink brings: every daemon of them can be asked how it does, on an address that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.core.role import Role
from tools.addresses import parse_address
from tools.fleet.find_role import Place, processes_of, shipped_role


def shipped(name: str) -> Role:
    role = shipped_role(name)
    assert role is not None
    return role


def admins(name: str) -> dict[str, str]:
    """By process, what its ``--admin`` is."""
    role = shipped(name)
    runs = {one.name: one.run for one in processes_of(role, Place(Path("/data"), "n1"), {})}
    return {process: run[run.index("--admin") + 1] for process, run in runs.items() if "--admin" in run}


def test_each_daemon_has_an_address_of_its_own_on_the_loopback() -> None:
    assert set(admins("render")) == {"sync"}, "render's figures are on the address that it serves on"
    assert set(admins("proxy")) == {"sync", "proxy"}
    found = [*admins("render").values(), *admins("proxy").values()]
    listens = [shipped(name).values["listen"] for name in ("render", "proxy")]
    assert {host for host, _ in (parse_address(text, "--admin", port_min=1) for text in found)} == {"127.0.0.1"}
    ports = [text.rpartition(":")[2] for text in (*found, *listens)]
    assert len(set(ports)) == len(ports), "a render server and a proxy may be on one machine"


@pytest.mark.parametrize(("name", "has_admin"), [("render", False), ("proxy", True)])
def test_only_a_proxy_is_judged_by_its_admin_address(name: str, has_admin: bool) -> None:
    """An upgrade takes a node with a value ``admin`` for one that registers nowhere (tools/fleet/local_fleet.py)."""
    assert ("admin" in shipped(name).values) is has_admin
