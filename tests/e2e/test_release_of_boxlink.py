"""A release that brings boxlink itself, as docs/releases.md tells an operator: its wheels and all that they need, a
first boot by the system's Python with nothing around it, a newer version by the channel, and back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import synclib
from synclib.clock import SystemEntropy
from tests.e2e.boxlink_process import end_session
from tests.e2e.test_up import Up
from tests.fleet import Fleet, Load, asks, drawn, until
from tests.pictures import small_wall
from tests.render_site import fetch
from tools.fleet.free_port import free_port

ROOT = Path(__file__).parents[2]
NEWER = "9.9.0"
LONG_S = 120.0
PAUSE_S = 0.03


def pip_wheel(directory: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of boxlink as it stands here, of all that it needs, and of pip, which some Pythons lack."""
    directory = tmp_path_factory.mktemp("wheels")
    pip_wheel(directory, str(ROOT), "pip")
    return directory


def newer_tree(place: Path) -> Path:
    """The same boxlink under another version."""
    for name in ("synclib", "render", "proxy", "tools"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for path in (place / "pyproject.toml", place / "synclib/__init__.py"):
        text = path.read_text()
        assert f'"{synclib.__version__}"' in text
        path.write_text(text.replace(f'"{synclib.__version__}"', f'"{NEWER}"'))
    return place


def system_python() -> str:
    """Not the environment that runs the tests: where the system has one of this version, that."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return shutil.which(name, path="/usr/bin:/bin") or str(Path(sys.executable).resolve())


class Instance:
    """A machine with the bootstrap, the public key and user-data, and nothing else of ours: no path of this tree."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.root = fleet.root / "machine"
        self.place = self.root / "release/fleet"
        entropy, taken = SystemEntropy(), set[int]()
        for _ in range(2):
            taken.add(free_port(taken, entropy))
        self.port, admin = taken
        run = ["boxlink", "up", "render", "--data", "{data}", "--release", "{release}", "--json"]
        run += ["--trust", f"{fleet.root}/trusted/fleet.pub", "--set", f"listen=127.0.0.1:{self.port}"]
        run += ["--set", f"sync_admin=127.0.0.1:{admin}"]
        told = {"store": f"file://{fleet.store}", "role": "render", "release": "fleet", "node": "booted", "run": run}
        (fleet.root / "node.toml").write_text(
            "".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items())
        )

    @property
    def environ(self) -> dict[str, str]:
        home = str(self.fleet.root / "home")
        return {"PATH": "/usr/bin:/bin", "HOME": home, "BOXLINK_CONFIG": str(self.fleet.root / "boxlink.toml")}

    def boot(self) -> Up:
        words = ["bootstrap.pyz", "--user-data", "node.toml", "--root", str(self.root), "--trusted", "trusted"]
        process = subprocess.Popen(
            [system_python(), "-I", *words],
            env=self.environ, cwd=self.fleet.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        return Up(process)

    def boxlink(self, *words: str) -> str:
        """Run by the one that is installed here."""
        command = [str(self.place / "current/venv/bin/boxlink"), *words]
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, cwd="/", timeout=LONG_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def version(self) -> str:
        return self.boxlink("--version").split()[-1]

    def wall(self) -> dict[str, Any]:
        """What it serves; empty where it does not."""
        try:
            reply = fetch(self.port, "/wall.json")
        except OSError:
            return {}
        found: dict[str, Any] = reply.json() if reply.status == 200 else {}
        return found


@pytest.fixture
def instance(fleet: Fleet, wheels: Path) -> Instance:
    """And what its operator has: a key, and ./build as docs/releases.md has it."""
    (fleet.root / "boxlink.toml").write_text("poll_s = 0.3\n")
    (fleet.root / "trusted").mkdir()
    fleet.boxlink("release", "key", str(fleet.root / "fleet.key"))
    (fleet.root / "fleet.key.pub").rename(fleet.root / "trusted/fleet.pub")
    fleet.boxlink("bootstrap", "--write", str(fleet.root / "bootstrap.pyz"))
    shutil.copytree(wheels, fleet.root / "build/wheels")
    (fleet.root / "build/roles").mkdir()
    role = (ROOT / "tools/fleet/roles/render.toml").read_text()
    following = 'role = "render"\nrelease_channel = "stable"\nrelease_spread_s = 0\n'
    (fleet.root / "build/roles/render.toml").write_text(role.replace('role = "render"\n', following))
    return Instance(fleet)


def steady(asked: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """With pauses: pip wants the processors, too."""
    for ask in asked:
        time.sleep(PAUSE_S)
        yield ask


def publish(fleet: Fleet) -> int:
    done = fleet.boxlink(
        "release", "publish", "fleet", str(fleet.root / "build"), "--key", str(fleet.root / "fleet.key")
    )
    assert done["is_current"]
    return int(done["seq"])


def test_it_is_booted_followed_and_rolled_back(fleet: Fleet, instance: Instance) -> None:
    pictures = small_wall(10)
    fleet.publish(pictures)
    assert publish(fleet) == 1
    fleet.boxlink("channel", "set", "stable", "fleet", "1", "--release")
    running = instance.boot()
    try:
        until(lambda: instance.wall() or running.process.poll() is not None, "the first boot serves the wall", LONG_S)
        assert running.process.poll() is None, (instance.root / "data/log/bootstrap.log").read_text()
        assert instance.version() == synclib.__version__
        assert_all_run(running, instance, 1)
        # Another node, of whatever release, serves while this one changes.
        fleet.sync("other")
        fleet.render("other").ready()
        proxy = fleet.proxy()
        until(lambda: list(proxy.states().values()) == ["active"] * 2, "the proxy has found both")
        wall = str(instance.wall()["wall"])
        # As an operator builds again: the wheels of before still stand there.
        pip_wheel(fleet.root / "build/wheels", "--no-deps", str(newer_tree(fleet.root / "newer")))
        assert publish(fleet) == 2
        with Load(proxy.port, steady(asks(wall, drawn(pictures))), clients=1) as load:
            load.wait(50)
            assert running.all("renewing") == [], "what is published moves nobody"
            fleet.boxlink("channel", "set", "stable", "fleet", "2", "--release")
            until(lambda: running.all("activated", seq=2), "the newer one has passed its trial", LONG_S)
            until(instance.wall, "it serves again")
            assert instance.version() == NEWER
            assert_all_run(running, instance, 2)
            until(lambda: list(proxy.states().values()).count("active") == 2, "the proxy has found it again")
            load.wait(50)
            back = json.loads(
                instance.boxlink("release", "rollback", "fleet", "--into", f"{instance.root}/release", "--json")
            )
            assert (back["seq"], instance.version()) == (1, synclib.__version__)
            running.wait("up", 2, release=f"{instance.place}/1")
            until(lambda: len(running.all("started", process="render")) == 3, "it runs what ran before")
            assert_all_run(running, instance, 1)
            until(instance.wall, "it serves again")
            load.wait(50)
        assert (load.failures, load.wrong, load.cut) == ([], [], [])
        assert running.process.poll() is None, "it is the same process"
        assert running.end() == 0
    finally:
        end_session(running.process)


def assert_all_run(running: Up, instance: Instance, seq: int) -> None:
    """The role's processes, as they were started last, and what the node says of itself."""
    for name in ("sync", "render"):
        pid = running.all("started", process=name)[-1]["pid"]
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert f"{instance.place}/{seq}/venv/bin/" in command
    until(lambda: instance_release(instance) == f"fleet@{seq}", "the node says which release it runs")


def instance_release(instance: Instance) -> object:
    rows = instance.fleet.boxlink("status", "--fleet")["nodes"]
    return next((row["status"]["release"] for row in rows if row["node"] == "booted" and row["status"]), None)
