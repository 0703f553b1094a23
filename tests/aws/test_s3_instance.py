"""An instance whose store is S3, over the wire and with the keys of its role alone: its policy allows what it asks of
the store, and its keys are nowhere but in the memory of its programs. So it is with those who publish for it, launch
it and ask it for tiles."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from synclib.core import zstd
from synclib.errors import BoxlinkError
from synclib.store.base import Store
from synclib.store.s3 import S3Store
from tests.aws.machines import Machines, machines
from tests.aws.policies import BUCKET, PREFIX, policy_document
from tests.aws.records import REGION
from tests.aws.requests import IMAGE, KIND
from tests.aws.s3_gate import Gate, running_gate
from tests.aws.standin import Identity, Standin, running_standin
from tests.e2e.test_fleet import changed
from tests.e2e.test_upgrade import ROLE
from tests.fleet import Proxy, drawn, until
from tests.pictures import Dataset, small_wall
from tools.bootstrap.build import build_bootstrap
from tools.demo.program import Program, boxlink_command

URL = f"s3://{BUCKET}/{PREFIX}"


class Site:
    """Three people, each with the rights of docs/iam/, whose store is behind the gate; ``store`` is beside it."""

    def __init__(self, place: Path, standin: Standin, gate: Gate, store: Store) -> None:
        self.place, self.standin, self.gate, self.store = place, standin, gate, store
        self.people = {who.name: who for who in gate.people}
        self.said = b""
        self.lines: set[bytes] = set()  # command lines that were seen
        self.surroundings: set[bytes] = set()  # of instances' processes

    def environment(self, name: str) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "BOXLINK_", "XDG_"))}
        return {
            **own,
            **self.standin.environment(self.people[name]),
            "AWS_ENDPOINT_URL_S3": self.gate.endpoint,
            "BOXLINK_STORE": URL,
            "BOXLINK_NODE": name,
            "HOME": str(self.place / name),
        }

    def run(self, name: str, *words: object) -> dict[str, Any]:
        command = [*boxlink_command(), *map(str, words), "--json"]
        environ = self.environment(name)
        done = subprocess.run(command, env=environ, cwd=self.place, capture_output=True, check=False, timeout=120)
        self.said += done.stdout + done.stderr
        assert done.returncode == 0, (words, done.stderr.decode(), self.gate.refused)
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def publish(self, files: Dataset) -> None:
        for path, data in files.items():
            file = self.place / "source" / os.fsdecode(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        self.run("publisher", "publish", "covers", self.place / "source")

    @contextlib.contextmanager
    def proxy(self) -> Iterator[Proxy]:
        words = ["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--poll", "0.3"]
        allowed = ["--allow", "127.0.0.0/8"]
        program = Program("proxy", [*words, *allowed], self.environment("proxy"), self.place / "proxy.err")
        try:
            yield Proxy(program)
        finally:
            program.kill()

    def keys(self, prefix: str) -> list[str]:
        return [info.key for info in self.store.list(prefix)]

    def look(self) -> bool:
        """At the processes here, while one waits for something."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if bytes(self.place) in line or b"boxlink" in line:
                    self.lines.add(line)
                if bytes(self.place / "machines") in line:
                    self.surroundings.add(Path(f"/proc/{pid}/environ").read_bytes())
        return True

    def objects(self) -> Iterator[bytes]:
        for key in self.keys(""):
            fetched = self.store.get(key, size_max=1 << 30)
            assert fetched is not None
            yield fetched.data
            with contextlib.suppress(BoxlinkError):
                yield zstd.decompress(fetched.data, zstd.content_size(fetched.data))

    def files(self) -> Iterator[bytes]:
        """All that instances and people have written, consoles among it."""
        for path in self.place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path.read_bytes()


@pytest.fixture
def site(tmp_path: Path, upstream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with running_standin(tmp_path, pace=20.0) as standin:
        people = [standin.identity(name, policy_document(name)) for name in ("operator", "publisher", "proxy")]
        node = standin.identity_of("boxlink-node")
        with running_gate(upstream, [*people, node]) as gate:
            with monkeypatch.context() as patch:
                patch.setenv("AWS_ACCESS_KEY_ID", "moto")
                patch.setenv("AWS_SECRET_ACCESS_KEY", "moto")
                store = S3Store(BUCKET, PREFIX, endpoint=upstream, region="us-east-1")
            yield Site(tmp_path, standin, gate, store)


@contextlib.contextmanager
def booting(site: Site) -> Iterator[Machines]:
    """Instances of an image that has the bootstrap, and trusts the fleet's key."""
    image = site.place / "image"
    (image / "trusted").mkdir(parents=True)
    (image / "bootstrap.pyz").write_bytes(build_bootstrap())
    (image / "trusted/fleet.pub").write_bytes((site.place / "fleet.key.pub").read_bytes())

    def boot(at: Path) -> list[str]:
        words = ["--root", str(at / "boxlink"), "--trusted", str(image / "trusted")]
        return [sys.executable, str(image / "bootstrap.pyz"), *words]

    environ = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AWS_ENDPOINT_URL_S3": site.gate.endpoint,
        "AWS_REGION": REGION,
    }
    with machines(site.standin, site.place / "machines", boot, environ) as found:
        yield found


def launched(site: Site, found: Machines) -> str:
    """The id of an instance that boots, once its machine runs."""
    machine = ["--image", IMAGE, "--type", KIND, "--profile", "boxlink-node"]
    machine += ["--subnet", next(iter(site.standin.instances.subnets))]
    trust = ["--release", "fleet", "--trust", site.place / "fleet.key.pub"]
    [node] = site.run("operator", "launch", "render", "--node", "render-1", *trust, *machine)["nodes"]

    def is_running() -> bool:
        with site.standin.locked():
            return bool(found.running)

    until(is_running, "its machine runs")
    return str(node["instance"])


def secrets_of(who: Identity) -> list[bytes]:
    """The secret key and the session token as they are, and as an URL has them."""
    return [form.encode() for text in (who.secret_key, who.session_token) if text for form in (text, quote(text))]


def test_an_instance_with_its_roles_rights_and_a_store_in_s3(site: Site) -> None:
    (site.place / "programs/roles").mkdir(parents=True)
    (site.place / "programs/roles/render.toml").write_text(ROLE)
    site.run("operator", "init")
    site.run("operator", "release", "key", site.place / "fleet.key")
    site.run("operator", "release", "publish", "fleet", site.place / "programs", "--key", site.place / "fleet.key")
    site.publish(small_wall(10))
    with booting(site) as found, site.proxy() as proxy:
        instance = launched(site, found)
        until(lambda: site.look() and list(proxy.states().values()) == ["active"], "it serves", 90)
        wall = str(proxy.get("/wall.json").json()["wall"])
        tiles = drawn(small_wall(10))
        assert proxy.tiles(wall, tiles) == tiles
        site.publish(changed(small_wall(10)))
        until(lambda: site.look() and proxy.get("/wall.json").json()["seq"] == 2, "it follows", 60)
        until(lambda: site.look() and site.keys("log/render-1/") and site.keys("node/"), "it says how it does", 60)
        site.run("operator", "status", "--fleet")
        with site.standin.locked():
            found.running[instance].process.terminate()
        until(lambda: not site.keys("proxy/"), "it takes its registration away")
    assert site.gate.refused == []
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"):
        assert site.gate.asked["boxlink-node", action], f"it was asked over the wire: {action}"
    assert any(b"bootstrap" in line for line in site.lines)
    assert len(site.surroundings) >= 3
    secrets = secrets_of(site.people["boxlink-node"])
    for where in (site.lines, site.surroundings, [site.said], site.objects(), site.files()):
        for seen in where:
            assert not [secret for secret in secrets if secret in seen]
    for people in ("operator", "publisher", "proxy"):
        for where in (site.lines, [site.said], site.objects(), site.files()):
            assert not [secret for seen in where for secret in secrets_of(site.people[people]) if secret in seen]
