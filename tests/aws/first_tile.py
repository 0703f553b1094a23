"""From RunInstances to the first tile, with all of EC2's delays as the stand-in has them.

    python -m tests.aws.first_tile --rounds 5 --covers 600

A benchmark and no test. The stand-in's clock goes as fast as ours; what it says takes its time takes it. The instance's
image has Python with boxlink, and the bootstrap; the release brings a role. Each line: seconds since RunInstances was
asked.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synclib.clock import SystemClock, SystemEntropy
from synclib.core.machine import Machine
from synclib.core.rollout import NodeSpec
from synclib.disk.mounts import MNT_DETACH, UMOUNT_NOFOLLOW, unmount
from synclib.store.open import open_store
from synclib.volume.aws_calls import Calls
from tests.aws.clients import client
from tests.aws.machines import machines
from tests.aws.requests import IMAGE
from tests.aws.standin import running_standin
from tests.fleet import Fleet, until
from tools.bootstrap.build import build_bootstrap
from tools.demo.covers import make_covers
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.readiness import Readiness

_ROLE = """
role = "render"

[[process]]
name = "sync"
run = ["boxlink", "sync", "--data", "{data}", "--lazy"]

[[process]]
name = "render"
run = ["boxlink", "render", "--data", "{data}", "--dataset", "covers", "--listen", "127.0.0.1:0"]
"""
STEPS = ("running", "asked for", "down", "ready", "found by the proxy", "first tile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--covers", type=int, default=600)
    arguments = parser.parse_args()
    found = [one_round(arguments.covers) for _ in range(arguments.rounds)]
    for step in STEPS:
        taken = sorted(times[step] for times in found)
        print(f"{step:20} {taken[0]:7.2f} / {statistics.median(taken):7.2f} / {taken[-1]:7.2f} s")
    ours = sorted(times["first tile"] - times["running"] for times in found)
    print(f"{'ours, of that':20} {ours[0]:7.2f} / {statistics.median(ours):7.2f} / {ours[-1]:7.2f} s")


def one_round(cover_count: int) -> dict[str, float]:
    """Seconds since RunInstances, by step."""
    with tempfile.TemporaryDirectory(prefix="boxlink-first-tile-") as name, _site(Path(name), cover_count) as site:
        return site.measure()


class _Site:
    def __init__(self, place: Path, fleet: Fleet, instances: Ec2Fleet) -> None:
        self._place, self._fleet, self._instances = place, fleet, instances
        self._proxy = fleet.proxy()

    def measure(self) -> dict[str, float]:
        started = time.monotonic()
        times: dict[str, float] = {}

        def reached(step: str, is_so: object) -> None:
            until(is_so, step, 120)  # type: ignore[arg-type]
            times[step] = time.monotonic() - started

        self._instances.start(NodeSpec(node="render-1", role="render", release="fleet@1"))
        covers = self._place / "machines/i-00000000000000001/boxlink/data/covers"
        reached("running", (self._place / "machines/i-00000000000000001").exists)
        reached("asked for", (covers / "synch.active").exists)
        reached("down", (covers / "synch.down").exists)
        reached("ready", self._fleet.registrations)
        reached("found by the proxy", lambda: list(self._proxy.states().values()) == ["active"])
        wall = self._proxy.get("/wall.json").json()
        tile = f"/tiles/{wall['wall']}/{wall['zoom_max']}/0/0.jpg"
        reached("first tile", lambda: self._proxy.get(tile).status == 200)
        return times


@contextmanager
def _site(place: Path, cover_count: int) -> Iterator[_Site]:
    fleet = Fleet(place)
    image, roles = place / "image", place / "release/roles"
    (image / "trusted").mkdir(parents=True)
    (image / "bootstrap.pyz").write_bytes(build_bootstrap())
    roles.mkdir(parents=True)
    (roles / "render.toml").write_text(_ROLE)
    fleet.boxlink("release", "key", str(place / "fleet.key"))
    (image / "trusted/fleet.pub").write_bytes((place / "fleet.key.pub").read_bytes())
    fleet.boxlink("release", "publish", "fleet", str(roles.parent), "--key", str(place / "fleet.key"))
    make_covers(place / "covers", cover_count, seed=2008)
    fleet.boxlink("publish", "covers", str(place / "covers"))
    store, _ = open_store(f"file://{fleet.store}", {})

    def boot(at: Path) -> list[str]:
        words = ["--root", str(at / "boxlink"), "--trusted", str(image / "trusted")]
        return [sys.executable, str(image / "bootstrap.pyz"), *words]

    environ = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    stopping = threading.Event()
    with running_standin(place, pace=1.0) as standin, machines(standin, place / "machines", boot, environ) as found:
        ec2 = client(standin, "ec2")

        def look() -> None:
            """The stand-in starts a machine when somebody asks after its time has come."""
            while not stopping.wait(0.02):
                with standin.locked():
                    pass

        looking = threading.Thread(target=look)
        looking.start()
        machine = Machine(IMAGE, ["c7g.large"], list(standin.instances.subnets)[:1])
        calls = Calls(SystemClock(), SystemEntropy())
        try:
            yield _Site(place, fleet, Ec2Fleet(ec2, Readiness(store, None), machine, f"file://{fleet.store}", calls))
        finally:
            fleet.close()
            found.end_all()
            stopping.set()
            looking.join()
            _unmount(place)


def _unmount(place: Path) -> None:
    """Mounts outlive their daemons; whoever serves them ends when nothing is mounted any more."""
    while found := [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place}/" in line
    ]:
        with contextlib.suppress(OSError):  # its keeper may have ended meanwhile
            unmount(found[-1].encode(), MNT_DETACH | UMOUNT_NOFOLLOW)
    served = f"{place}/".encode()
    until(lambda: not any(served in _command(path) for path in Path("/proc").glob("[0-9]*")), "its keepers end")


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
