"""How long an end may take is one rule, from a request to a node."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from proxy.server import LET_GO_S, ProxyServer
from synclib.core.drain import DRAIN_S, END_S, STOP_S
from tools.fleet.find_role import Place, processes_of, shipped_role
from tools.fleet.local_fleet import DRAIN_S as NODE_S
from tools.fleet.units import write_units
from tools.render_daemon import Plan


def test_servers_give_what_runs_the_same_time() -> None:
    assert DRAIN_S == 30
    assert Plan.__dataclass_fields__["drain_s_max"].default == DRAIN_S
    assert inspect.signature(ProxyServer.stop).parameters["grace_s"].default == DRAIN_S
    assert LET_GO_S < END_S


@pytest.mark.parametrize("name", ["render", "proxy"])
def test_nobody_kills_a_server_that_still_may_drain(name: str, tmp_path: Path) -> None:
    role = shipped_role(name)
    assert role is not None
    assert {process.stop_s for process in role.process} == {STOP_S}
    assert sum(process.stop_s for process in role.process) <= NODE_S, "an upgrade waits for all of a node"
    place = Place(tmp_path / "data", "n1")
    for path in write_units(tmp_path, name, processes_of(role, place, {}), place, "", "")[1:]:
        assert f"TimeoutStopSec={STOP_S:g}\n" in path.read_text()
