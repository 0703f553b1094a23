"""Rolling instances: the stand-in's machines really boot, by the bootstrap, into render nodes that register."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import SeededEntropy, SystemClock
from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec, Rollout, State
from synclib.engine.host import Host
from synclib.engine.rollout import Driver, plan
from synclib.engine.rollout_journal import Journal
from synclib.store.open import open_store
from synclib.volume.aws_calls import Calls
from tests.aws.clients import client
from tests.aws.machines import Machines, machines
from tests.aws.requests import IMAGE
from tests.aws.standin import Standin
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE
from tests.fleet import Fleet, Load, Proxy, asks, drawn, until
from tests.pictures import small_wall
from tools.bootstrap.build import build_bootstrap
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.proxy_admin import ProxyAdmin
from tools.fleet.readiness import Readiness


class Rig:
    """Two instances of a role that serve a dataset's first seq behind a proxy."""

    def __init__(
        self, place: Path, standin: Standin, found: Machines, fleet: Fleet, profile: str = "", role: str = ROLE
    ) -> None:
        self.standin, self.machines, self.fleet = standin, found, fleet
        self.role = role
        self.store, _ = open_store(f"file://{fleet.store}", {})
        self.key = place / "fleet.key"
        fleet.boxlink("release", "key", str(self.key))
        self.publish_release("# the first\n")
        fleet.publish(small_wall(10))
        self.proxy: Proxy = fleet.proxy()
        self.ec2 = client(standin, "ec2")
        self.readiness = Readiness(self.store, ProxyAdmin(f"127.0.0.1:{self.proxy._admin}"))
        machine = Machine(IMAGE, ["c7g.large"], list(standin.instances.subnets)[:1], profile=profile)
        self.calls = Calls(standin.clock, SeededEntropy(1))
        self.instances = Ec2Fleet(self.ec2, self.readiness, machine, f"file://{fleet.store}", self.calls)
        self.host = Host("operator", SystemClock(), SeededEntropy(2), place / "state", place / "cache")
        self.journal = Journal(self.store, self.host)

    def publish_release(self, note: str) -> None:
        roles = self.fleet.root / "release/roles"
        roles.mkdir(parents=True, exist_ok=True)
        (roles / "render.toml").write_text(self.role + note)
        self.fleet.boxlink("release", "publish", "fleet", str(roles.parent), "--key", str(self.key))

    def launch(self, snapshot: str = "") -> None:
        for number in (1, 2):
            self.instances.start(
                NodeSpec(
                    node=f"render-{number}", role="render", release="fleet@1", pins={"covers": 1}, snapshot=snapshot
                )
            )
        until(lambda: list(self.proxy.states().values()) == ["active"] * 2, "both are found", 90)

    def roll(
        self, new: dict[str, Any], ready_s_max: float = 90, more: Mapping[str, dict[str, Any]] | None = None
    ) -> Rollout:
        """``more``: what is new of one node besides, by its old name."""

        def new_of(old: NodeSpec) -> NodeSpec:
            own = (more or {}).get(old.node, {})
            return old.model_copy(update={"node": old.node.replace("render", "new"), **new, **own})

        olds = self.instances.running("render")
        assert [old.pins for old in olds] == [{"covers": 1}] * 2, "they say where they stay"
        entry = self.journal.create(plan(self.journal.find("render").next_id, olds, new_of, 10, ""))
        driver = Driver(
            self.journal, self.instances, self.host, lambda text, _: print(text), ready_s_max=ready_s_max, bake_s=0
        )
        return driver.run(entry)

    def live(self) -> list[str]:
        return [spec.node for spec in self.instances.running("render")]


@pytest.fixture
def rig(tmp_path: Path, standin: Standin) -> Iterator[Rig]:
    with rigged(tmp_path, standin) as rig:
        yield rig


@contextmanager
def rigged(
    tmp_path: Path, standin: Standin, environ: Mapping[str, str] | None = None, profile: str = "", role: str = ROLE
) -> Iterator[Rig]:
    """``environ``: what instances find in their environment besides, and the publisher."""
    fleet = Fleet(tmp_path)
    image = tmp_path / "image"
    (image / "trusted").mkdir(parents=True)
    (image / "bootstrap.pyz").write_bytes(build_bootstrap())

    def boot(place: Path) -> list[str]:
        words = ["--root", str(place / "boxlink"), "--trusted", str(image / "trusted")]
        return [sys.executable, str(image / "bootstrap.pyz"), *words]

    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **(environ or {})}
    stopping = threading.Event()

    def let_time_pass() -> None:
        """The stand-in's states move by its clock, and are seen when somebody asks."""
        ec2 = client(standin, "ec2")
        while not stopping.wait(0.2):
            standin.clock.advance(2.0)
            ec2.describe_instances()

    passing = threading.Thread(target=let_time_pass)
    try:
        with machines(standin, tmp_path / "machines", boot, own) as found:
            passing.start()
            rig = Rig(tmp_path, standin, found, fleet, profile, role)
            (image / "trusted/fleet.pub").write_bytes(Path(f"{rig.key}.pub").read_bytes())
            yield rig
    finally:
        stopping.set()
        if passing.is_alive():
            passing.join()
        fleet.close()


def test_instances_are_rolled_to_a_release_and_a_seq(rig: Rig) -> None:
    rig.launch()
    rig.publish_release("# the second\n")
    rig.fleet.publish(changed(small_wall(10)))
    wall = str(rig.proxy.get("/wall.json").json()["wall"])
    with Load(rig.proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        done = rig.roll({"release": "fleet@2", "pins": {"covers": 2}})
    assert done.state is State.DONE
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert rig.live() == ["new-1", "new-2"]
    found = [one for one in rig.proxy.backends().values() if one["state"] == "active"]
    assert [(one["release"], one["seq"]) for one in found] == [("fleet@2", 2)] * 2


def test_instances_that_never_get_ready_are_ended(rig: Rig) -> None:
    rig.launch()
    done = rig.roll({"pins": {"covers": 9}}, ready_s_max=15)
    assert done.state is State.ROLLED_BACK
    assert "has not registered" in done.reason
    assert rig.live() == ["render-1", "render-2"]
    until(lambda: len(rig.machines.running) == 2, "nothing else runs")
