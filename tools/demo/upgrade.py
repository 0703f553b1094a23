"""A rolling upgrade on this machine, one line a step. ``python -m tools.demo.upgrade [--exit] [--faults]``

Three render nodes behind the proxy, under a steady load, are rolled to a new release and then to a new seq. At the end
the requests are counted, and those that failed; any is a failure of the demo. With ``--faults`` they are rolled while
something goes wrong, one thing after the other (tools/demo/upgrade_faults.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from synclib.errors import BoxlinkError
from tools.demo.__main__ import COVER_COUNT, cover_directory
from tools.demo.load import Load
from tools.demo.processes import Demo, DemoError
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import nodes, stop

PLACE = Path(".demo-upgrade")
NODE_COUNT = 3
_DRAIN_S = 60.0
_ROLE = """
# The render nodes of this demo.
role = "render"

[values]
dataset = "covers"
listen = "127.0.0.1:0"

[[process]]
name = "sync"
run = ["boxlink", "sync", "--data", "{data}", "--poll", "1"]

[[process]]
name = "render"
run = ["boxlink", "render", "--data", "{data}", "--dataset", "{dataset}", "--listen", "{listen}", "--lease", "LEASE"]
stop_s = 60
"""


def role_text(lease_s: str) -> str:
    """The role of the nodes; what differs makes another release of it."""
    return _ROLE.replace("LEASE", lease_s)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo-upgrade", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="end when the upgrades are done, instead of staying up")
    parser.add_argument("--faults", action="store_true", help="roll while things go wrong, and count; then end")
    parser.add_argument(
        "--requests",
        type=int,
        default=40_000,
        help="with --faults: how many at least while each is rolled (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=8080, help="where the wall is to be seen (default: %(default)s)")
    parser.add_argument("--count", type=int, default=COVER_COUNT, help="how many covers (default: %(default)s)")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        place = PLACE.resolve()
        end_nodes(place / "nodes", 0.0)  # of a demo that was killed
        return run(Demo(place), arguments)
    except KeyboardInterrupt:
        return 0
    except (DemoError, BoxlinkError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def check_load(load: Load) -> None:
    """DemoError where a request was lost: then the demo ends with 1."""
    if load.failed or load.wrong:
        raise DemoError(f"requests were lost: {load.first_failure}")


def run(demo: Demo, arguments: argparse.Namespace) -> int:
    code = 0
    try:
        Upgrades(demo, arguments).run()
        if not (arguments.exit or arguments.faults):
            demo.say(f"open http://127.0.0.1:{demo.port}/ in a browser; Ctrl-C stops all of it")
            demo.wait()
    except KeyboardInterrupt:
        pass
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        code = 1
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            end_nodes(demo.place / "nodes", _DRAIN_S)
        end_nodes(demo.place / "nodes", 0.0)
        is_clean = demo.stop()
    demo.say("stopped" if is_clean else "something did not stop cleanly")
    return code or (0 if is_clean else 1)


def end_nodes(place: Path, drain_s: float) -> None:
    """Let every node below a directory end."""
    for node in reversed(nodes(place)):
        stop(node, drain_s)


class Upgrades:
    def __init__(self, demo: Demo, arguments: argparse.Namespace) -> None:
        self.demo, self._arguments = demo, arguments
        self._nodes = demo.place / "nodes"
        self._key = demo.place / "fleet.key"

    def run(self) -> None:
        covers = cover_directory(self.demo, self._arguments.count)
        admin = self._start(covers)
        if self._arguments.faults:
            from tools.demo.upgrade_faults import run_faults

            run_faults(self, covers, admin, self._arguments.requests)
            return
        load = Load(self.demo.port, self.expected())
        load.start()
        try:
            self._roll(load, admin, covers)
        finally:
            load.stop()
        self.demo.say(f"{load.answered} requests answered, {load.failed} failed, {load.wrong} with wrong bytes")
        check_load(load)

    def _start(self, covers: Path) -> str:
        """Store, nodes and proxy; the proxy's admin address."""
        demo = self.demo
        demo.boxlink("init")
        seq = demo.boxlink("publish", "covers", str(covers))["seq"]
        demo.say(f"published seq {seq} of 'covers'")
        self.publish_release(role_text("30"))
        words = ("--set", "dataset=covers", "--seq", f"covers={seq}", "--release", "fleet", *self.trust)
        started = demo.boxlink("launch", "render", "--local", str(self._nodes), "--count", str(NODE_COUNT), *words)[
            "nodes"
        ]
        demo.say(f"started {', '.join(node['node'] for node in started)}, each with a directory and ports of its own")
        demo.start_proxy(self._arguments.port)
        admin = str(demo.wait_event("proxy", "ready")["admin"])
        demo.wait_for(lambda: self._backends(admin) == NODE_COUNT, "the proxy finds all of them", "proxy")
        demo.say(f"the proxy found them, and serves on port {demo.port}")
        return admin

    @property
    def trust(self) -> tuple[str, str]:
        return ("--trust", str(self._key) + ".pub")

    def publish_release(self, role: str) -> None:
        """A release of the programs that run here, with a role of its own; it is signed."""
        demo = self.demo
        if not self._key.exists():
            demo.boxlink("release", "key", str(self._key))
        directory = demo.place / "release"
        (directory / "roles").mkdir(parents=True, exist_ok=True)
        (directory / "roles/render.toml").write_text(role)
        done = demo.boxlink("release", "publish", "fleet", str(directory), "--key", str(self._key))
        demo.say(f"published release fleet@{done['seq']}, signed")

    def _roll(self, load: Load, admin: str, covers: Path) -> None:
        demo = self.demo
        self.publish_release(role_text("20"))
        self.upgrade(admin, "--release", "fleet", *self.trust)
        demo.say(f"every node runs the new release; {load.answered} requests so far, {load.failed} failed")
        Image.new("RGB", (300, 450), (200, 30, 30)).save(covers / "a-new-cover.jpg")
        seq = demo.boxlink("publish", "covers", str(covers))["seq"]
        demo.say(f"published seq {seq}, and roll to it")
        self.upgrade(admin, "--seq", f"covers={seq}", *self.trust, on_line=self.expecting(load))
        found = json.loads(demo.fetch("/wall.json")[2])
        if found["seq"] != seq:
            raise DemoError(f"the wall is that of seq {found['seq']}")
        demo.say(f"every node serves seq {seq}; {load.answered} requests so far, {load.failed} failed")

    def upgrade(self, admin: str, *words: str, code: int = 0, on_line: Callable[[str], None] = lambda _: None) -> None:
        """Run `boxlink upgrade`, and say what it says; DemoError where it does not end with ``code``."""
        demo = self.demo
        command = [*boxlink_command(), "upgrade", "render", "--local", str(self._nodes), "--proxy", admin, *words]
        with subprocess.Popen(
            command, env=demo.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said = line.strip()
                demo.say(f"    {said.removeprefix('boxlink: ')}")
                on_line(said)
        if process.returncode != code:
            raise DemoError(f"boxlink upgrade ended with {process.returncode}, not {code}: {said}")

    def expecting(self, load: Load) -> Callable[[str], None]:
        """Let a load ask for the new wall as soon as one of an upgrade's new nodes serves it."""

        def heard(line: str) -> None:
            if "is ready" in line:
                load.expect(self.expected())

        return heard

    def _backends(self, admin: str) -> int:
        status, _, body = self.demo.fetch("/backends", int(admin.rpartition(":")[2]))
        found: list[dict[str, Any]] = json.loads(body) if status == 200 else []
        return sum(one["state"] == "active" for one in found)

    def expected(self) -> dict[str, bytes]:
        """Tiles of the wall, as the nodes draw them before anything changes."""
        wall = json.loads(self.demo.fetch("/wall.json")[2])
        zoom = wall["zoom_max"]
        across = min(6, -(-wall["width"] // wall["tile"]))
        down = min(6, -(-wall["height"] // wall["tile"]))
        paths = [f"/tiles/{wall['wall']}/{zoom}/{x}/{y}.jpg" for x in range(across) for y in range(down)]
        answers = {path: self.demo.fetch(path) for path in paths}
        bad = {path: answer[0] for path, answer in answers.items() if answer[0] != 200}
        if bad:
            raise DemoError(f"tiles cannot be had: {bad}")
        return {path: answer[2] for path, answer in answers.items()}


if __name__ == "__main__":
    sys.exit(main())
