"""`boxlink launch --local`: nodes that go on by themselves, are found again, and are not started twice."""

from __future__ import annotations

import contextlib
import os
import signal
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import botocore.loaders
import botocore.model
import botocore.validate
import pytest

from synclib.clock import SeededEntropy, SystemClock
from synclib.core.rollout import NodeSpec, Rollout, State, Step
from synclib.errors import Conflict, Unavailable
from synclib.store.memory import MemoryStore
from tests.e2e.boxlink_process import Machine, started
from tests.e2e.test_up import is_running, until
from tests.engine.test_release import every_kill
from tools.fleet import local_nodes
from tools.fleet.local_fleet import LocalFleet
from tools.fleet.local_nodes import Wish
from tools.fleet.node_file import LocalNode
from tools.fleet.one_up import holder
from tools.fleet.readiness import Readiness

ECHO = """
role = "echo"
[values]
listen = "0.0.0.0:80"
word = "x"
[[process]]
name = "a"
run = ["python3", "-u", "{script}", "{listen}"]
"""
SERVE = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
host, _, port = sys.argv[1].rpartition(":")
http.server.ThreadingHTTPServer((host, int(port)), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "serve.py").write_text(SERVE)
    (tmp_path / "echo.toml").write_text(ECHO.replace("{script}", str(tmp_path / "serve.py")))
    machine = Machine(tmp_path)
    machine.run("init")
    try:
        yield machine
    finally:
        for node in local_nodes.nodes(tmp_path / "nodes"):
            local_nodes.stop(node, 10)


def answers(node: LocalNode) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{node.ports['listen']}/", timeout=5):
        return True
    return False


def launch(machine: Machine, *words: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = machine.json("launch", "echo.toml", "--local", "nodes", *words)["nodes"]
    return found


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ")


def nodes(machine: Machine) -> dict[str, LocalNode]:
    return {node.node: node for node in local_nodes.nodes(machine.place / "nodes")}


def test_a_set_value_stands_above_what_the_role_has(machine: Machine) -> None:
    """Set to what it is, by the role or by a port that was found, it is no change of a node that is up."""
    port = launch(machine)[0]["ports"]["listen"]  # type: ignore[index]
    for value, word in ((f"127.0.0.1:{port}", "listen"), ("x", "word")):
        (again,) = launch(machine, "--set", f"{word}={value}")
        assert again["is_new"] is False
    other = ("launch", "echo.toml", "--local", "nodes", "--set", "word=y")
    for more in ((), ("--dry-run",)):
        refused = machine.json(*other, *more, code=13)["error"]
        assert refused["message"] == "node echo-1 is up with word=x, not word=y"
        assert f"boxlink upgrade echo --local {machine.place}/nodes --set word=y rolls all" in refused["hint"]
    (set_,) = launch(machine, "--node", "echo-2", "--set", "word=y")
    assert set_["is_new"] is True
    assert any(b" up " in line and b"word=y" in line for line in command_lines())
    unsaid = machine.json("launch", "echo.toml", "--local", "nodes", "--node", "echo-2", code=13)["error"]
    assert unsaid["message"] == "node echo-2 is up with word=y, not what the role has"
    assert unsaid["hint"] == "name it as it is: --set word=y"
    nosuch = machine.json(*other[:-1], "nosuch=1", "--node", "echo-3", code=2)["error"]
    assert "has no value 'nosuch'" in nosuch["message"]


def test_who_asks_for_instances_is_told_of_local(machine: Machine) -> None:
    error = machine.json("upgrade", "echo", "--set", "word=y", code=2)["error"]
    assert error["message"].startswith(("open EC2: ", "list instances: "))
    assert "nodes that were launched with --local DIR on a machine need --local DIR here too" in error["hint"]


def test_several_each_with_its_own_place_and_port(machine: Machine) -> None:
    first = launch(machine, "--count", "3")
    assert [node["node"] for node in first] == ["echo-1", "echo-2", "echo-3"]
    assert {node["is_new"] for node in first} == {True}
    found = nodes(machine)
    assert len({node.ports["listen"] for node in found.values()}) == 3
    until(lambda: all(answers(node) for node in found.values()))
    again = launch(machine, "--count", "3")
    assert [(node["pid"], node["is_new"]) for node in again] == [(node["pid"], False) for node in first]
    one = machine.json("launch", "echo.toml", "--local", "nodes", "--node", "echo-2", "--stop")
    assert one["nodes"] == [{"node": "echo-2", "drained": True, "was_up": True}]
    assert one["others"] == ["echo-1", "echo-3"]
    assert [local_nodes.is_alive(node) for node in nodes(machine).values()] == [True, False, True]
    assert not answers(found["echo-2"])
    # The same place and port as before.
    (back,) = launch(machine, "--node", "echo-2")
    assert (back["is_new"], back["ports"]) == (True, first[1]["ports"])
    log = machine.place / "nodes/echo-2/data/log"
    assert any(path.name.startswith("up-") for path in log.iterdir())
    machine.json("launch", "echo.toml", "--local", "nodes", "--count", "3", "--stop")
    assert not any(local_nodes.is_alive(node) for node in nodes(machine).values())


def test_nobody_is_stopped_while_an_upgrade_is_at_work(machine: Machine) -> None:
    launch(machine)
    old = NodeSpec(node="echo-1", role="echo")
    new = old.model_copy(update={"node": "echo-000001-1", "values": {"listen": "0.0.0.0:81"}})
    rollout = Rollout(id="echo-000001", role="echo", steps=[Step(old=old, new=new, batch=0)], at="")
    journal = machine.place / "store/upgrade/echo-000001"
    journal.parent.mkdir()
    words = ("launch", "echo", "--local", "nodes", "--stop")
    for state, code in ((State.RUNNING, 13), (State.ROLLING_BACK, 13), (State.PAUSED, 0)):
        journal.write_text(rollout.model_copy(update={"state": state}).model_dump_json())
        found = machine.json(*words, code=code)
        assert [local_nodes.is_alive(node) for node in nodes(machine).values()] == [code != 0], found
    refused = machine.json(*words, "--remove", code=13)["error"]
    assert "may need the nodes of role echo yet" in refused["message"]
    assert refused["hint"].endswith("boxlink upgrade echo --local nodes --abort; or --stop without --remove")
    assert list(nodes(machine)) == ["echo-1"]
    assert "is about echo-1" in machine.json("launch", "echo.toml", "--local", "nodes", code=13)["error"]["message"]


def test_an_upgrade_is_looked_for_by_the_role_of_the_nodes(machine: Machine) -> None:
    """Not by the name of its file, nor by whatever role was named beside --node."""
    (machine.place / "tiles.toml").write_text((machine.place / "echo.toml").read_text())
    machine.json("launch", "tiles.toml", "--local", "nodes", "--node", "echo-1")
    old = NodeSpec(node="echo-1", role="echo")
    new = old.model_copy(update={"node": "echo-000001-1"})
    rollout = Rollout(id="echo-000001", role="echo", steps=[Step(old=old, new=new, batch=0)], at="")
    (machine.place / "store/upgrade").mkdir()
    (machine.place / "store/upgrade/echo-000001").write_text(rollout.model_dump_json())
    words = ("launch", "tiles.toml", "--local", "nodes")
    for more in (("--stop",), ("--stop", "--node", "echo-1", "--remove"), ("--node", "echo-1")):
        assert "upgrade echo-000001" in machine.json(*words, *more, code=13)["error"]["message"]
    other = ("launch", "proxy", "--local", "nodes", "--stop", "--node", "echo-1")
    assert machine.json(*other, code=13)["error"]["message"] == "node echo-1 is of role echo, not proxy"
    assert local_nodes.is_alive(nodes(machine)["echo-1"])


def test_a_node_of_another_store_is_not_removed(machine: Machine) -> None:
    launch(machine)
    machine.run("init", "--store", f"file://{machine.place}/other")
    words = ("launch", "echo", "--local", "nodes", "--stop", "--remove", "--store", f"file://{machine.place}/other")
    refused = machine.json(*words, code=13)["error"]
    assert refused["hint"] == f"--store {machine.store}"
    assert local_nodes.is_alive(nodes(machine)["echo-1"])


def test_what_has_an_admin_address_has_to_register_all_the_same(machine: Machine) -> None:
    """Only a proxy, which registers nowhere, is asked itself whether it is ready."""
    text = (machine.place / "echo.toml").read_text().replace("listen", "admin")
    (machine.place / "side.toml").write_text(text.replace('"echo"', '"side"'))
    place, store = machine.place / "nodes", MemoryStore()
    wish = Wish(str(machine.place / "side.toml"))
    local_nodes.start(place, "side-1", wish, machine.environment, SystemClock(), SeededEntropy(1))
    (Path(machine.place) / "healthz").write_text("fine")
    fleet = LocalFleet(
        place, Readiness(store, None), machine.environment, SystemClock(), SeededEntropy(1),
        lambda _: None, lambda _: None,
    )  # fmt: skip
    view = fleet.look([NodeSpec(node="side-1", role="side")])["side-1"]
    assert (view.is_there, view.is_ready) == (True, False)
    assert "registered" in view.why


def test_a_stop_without_a_number_is_of_all_nodes_of_the_role(machine: Machine) -> None:
    """As an upgrade has named them too; another role's run on."""
    place, wish = machine.place / "nodes", Wish(str(machine.place / "echo.toml"))
    (machine.place / "other.toml").write_text((machine.place / "echo.toml").read_text().replace("echo", "other"))
    other = Wish(str(machine.place / "other.toml"))
    for name, what in (("echo-000001-1", wish), ("echo-000001-2", wish), ("echo-1", wish), ("other-1", other)):
        local_nodes.start(place, name, what, machine.environment, SystemClock(), SeededEntropy(1))
    words = ("launch", "echo", "--local", "nodes", "--stop")
    planned = machine.run(*words, "--dry-run").decode().splitlines()
    assert planned[0] == "echo-1 would be stopped"
    assert all(local_nodes.is_alive(node) for node in nodes(machine).values()), "a dry run"
    said = machine.run(*words).decode().splitlines()
    assert said == [
        "echo-1 stopped", "echo-000001-2 stopped", "echo-000001-1 stopped", "up as before: other-1",
    ]  # fmt: skip
    assert [name for name, node in nodes(machine).items() if local_nodes.is_alive(node)] == ["other-1"]
    assert machine.json(*words)["nodes"][0] == {"node": "echo-1", "drained": True, "was_up": False}, "and again"
    missing = machine.json("launch", "nosuch", "--local", "nodes", "--stop", code=10)["error"]
    assert "other-1 (role other)" in missing["hint"]


def test_what_is_removed_leaves_nothing_but_its_logs(machine: Machine) -> None:
    launch(machine, "--count", "2")
    told = ("node/echo-1", "node/echo-2", "log/echo-1/kept")
    for key in told:
        path = machine.place / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    words = ("launch", "echo", "--local", "nodes", "--stop", "--node", "echo-1", "--remove")
    assert machine.run(*words, "--dry-run").decode().splitlines()[0] == (
        "echo-1 would be stopped, and would be taken away"
    )
    assert sorted(nodes(machine)) == ["echo-1", "echo-2"]
    done = machine.json(*words)
    assert done["nodes"] == [{"node": "echo-1", "drained": True, "was_up": True, "removed": True, "left": []}]
    assert [path.name for path in (machine.place / "nodes").iterdir()] == ["echo-2"]
    assert [(machine.place / "store" / key).exists() for key in told] == [False, True, True]
    assert local_nodes.is_alive(nodes(machine)["echo-2"])
    assert machine.json(*words, code=10)["error"]["kind"] == "missing"
    assert "--stop --remove" in machine.json("launch", "echo", "--local", "nodes", "--remove", code=2)["error"]["hint"]


def test_a_dry_run_refuses_what_a_launch_refuses(machine: Machine) -> None:
    launch(machine)
    words = ("launch", "--local", "nodes", "--node", "echo-1")
    assert machine.json(*words, "proxy", "--dry-run", code=13)["error"]["kind"] == "conflict"
    assert machine.json(*words, "echo.toml", "--release", "nosuch", "--dry-run", code=10)["error"]["kind"] == "missing"
    release(machine, 1)
    unsigned = machine.json(*words, "echo.toml", "--release", "fleet", "--dry-run", code=2)["error"]
    assert "is not signed" in unsigned["message"]


def test_what_runs_besides_is_named(machine: Machine) -> None:
    wish = Wish(str(machine.place / "echo.toml"))
    place = machine.place / "nodes"
    local_nodes.start(place, "echo-000001-1", wish, machine.environment, SystemClock(), SeededEntropy(1))
    words = ("launch", "echo.toml", "--local", "nodes")
    for more in (("--dry-run",), ()):
        assert machine.json(*words, *more)["others"] == ["echo-000001-1"]
    assert machine.run(*words).decode().splitlines()[-1] == "up besides: echo-000001-1"


@pytest.mark.parametrize("moment", ["node.json", "holder"])
def test_a_launch_that_was_killed_is_gone_on_with(machine: Machine, moment: str) -> None:
    """Killed when the node's file is there, and when its `up` is: the same command again makes one node of it."""
    place = machine.place / "nodes/echo-1"

    def has_come() -> bool:
        return (place / "node.json").exists() if moment == "node.json" else holder(place / "data", "echo") is not None

    with started(machine, "launch", "echo.toml", "--local", "nodes") as process:
        until(lambda: has_come() or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (node,) = launch(machine)
    until(lambda: answers(nodes(machine)["echo-1"]))
    ups = [line for line in command_lines() if b" up " in line and f"{place}/data".encode() in line]
    assert len(ups) == 1
    assert is_running(int(str(node["pid"])))


def test_killed_at_every_change(machine: Machine) -> None:
    """Whoever starts a node is killed at each step of it; the same again makes one node, never two."""
    place, ports = machine.place / "nodes", set()

    def start() -> tuple[LocalNode, bool]:
        wish = Wish(str(machine.place / "echo.toml"))
        return local_nodes.start(place, "one", wish, machine.environment, SystemClock(), SeededEntropy(1))

    for _ in every_kill(start):
        node, _ = start()
        until(lambda: answers(nodes(machine)["one"]))
        # One that was started too, by whoever was killed, sees the other's lock, and ends.
        until(lambda: sum(b" up " in line and f"{place}/one/data".encode() in line for line in command_lines()) == 1)
        ports.add(node.ports["listen"])
        assert local_nodes.stop(node, 30)
        assert not [line for line in command_lines() if f"{place}/one/data".encode() in line]
    assert len(ports) == 1


def test_a_pid_that_is_anothers_now_is_not_believed(machine: Machine) -> None:
    launch(machine)
    node = nodes(machine)["echo-1"]
    assert local_nodes.stop(node, 30)
    stranger = node.model_copy(update={"pid": os.getpid()})
    assert not local_nodes.is_alive(stranger)
    assert local_nodes.stop(stranger, 0)
    local_nodes.remove(node)
    assert not node.directory.exists()
    assert nodes(machine) == {}


def test_kill_9_of_up_leaves_nothing_and_the_node_starts_again(machine: Machine) -> None:
    launch(machine)
    node = nodes(machine)["echo-1"]
    until(lambda: answers(node))
    os.kill(node.pid, signal.SIGKILL)
    until(lambda: not answers(node))
    until(lambda: not local_nodes.is_alive(node))
    (again,) = launch(machine)
    assert again["is_new"]
    until(lambda: answers(node))


def test_in_one_process_as_an_upgrade_does(machine: Machine) -> None:
    place = machine.place / "nodes"
    environ = machine.environment
    wish = Wish(str(machine.place / "echo.toml"))
    node, is_new = local_nodes.start(place, "one", wish, environ, SystemClock(), SeededEntropy(1))
    assert is_new
    with pytest.raises(Conflict, match=r"is up with listen=.*, not listen=127.0.0.1:1"):
        local_nodes.start(
            place, "one", Wish(wish.role, values={"listen": "127.0.0.1:1"}), environ, SystemClock(), SeededEntropy(1)
        )
    with pytest.raises(Conflict, match="runs"):
        local_nodes.remove(node)
    # An `up` that ignores SIGTERM for too long is killed, and its processes with it.
    os.kill(node.pid, signal.SIGSTOP)
    assert not local_nodes.stop(node, 0.1)
    until(lambda: not answers(node))
    assert not local_nodes.is_alive(node)


def test_one_that_cannot_come_up_says_why(machine: Machine) -> None:
    bad = machine.place / "bad.toml"
    bad.write_text('role = "bad"\n[[process]]\nname = "a"\nrun = ["nosuch"]\n')
    with pytest.raises(Unavailable, match="there is no program nosuch"):
        local_nodes.start(
            machine.place / "nodes", "bad", Wish(str(bad)), machine.environment, SystemClock(), SeededEntropy(1)
        )
    assert machine.json("launch", "nosuch", "--local", "nodes", code=10)["error"]["kind"] == "missing"


FLEET = ("--release", "fleet", "--allow-unsigned")


def release(machine: Machine, seq: int) -> dict[str, object]:
    """What publishing the last of so many seqs says."""
    (machine.place / "build").mkdir()
    for number in range(seq):
        (machine.place / "build/version").write_text(str(number))
        done: dict[str, object] = machine.json("release", "publish", "fleet", "build")
    return done


def test_the_request_is_what_ec2_takes(machine: Machine) -> None:
    """Against botocore's own model of RunInstances; the user-data is the bootstrap's."""
    published = release(machine, 3)
    words = (
        "--allow-unsigned",
        "--release",
        "fleet@3",
        "--image",
        "ami-0123",
        "--node",
        "r1",
        "--subnet",
        "subnet-1",
        "--subnet",
        "subnet-2",
    )
    found = machine.json("launch", "render", *words, "--type", "m7g.large", "--type", "m6g.large", "--profile", "node",
                         "--set", "dataset=covers", "--dry-run")  # fmt: skip
    tries = found["run_instances"]["r1"]
    assert [(each["InstanceType"], each["SubnetId"]) for each in tries] == [
        ("m7g.large", "subnet-1"), ("m7g.large", "subnet-2"), ("m6g.large", "subnet-1"), ("m6g.large", "subnet-2"),
    ]  # fmt: skip
    model = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model("ec2", "service-2"))
    for each in tries:
        shape = model.operation_model("RunInstances").input_shape
        report = botocore.validate.ParamValidator().validate(each, shape)
        assert not report.has_errors(), report.generate_report()
        assert each["MetadataOptions"]["HttpTokens"] == "required"
    assert len({each["ClientToken"] for each in tries}) == 4
    assert all(len(each["ClientToken"]) <= 64 for each in tries)
    again = machine.json("launch", "render", *words, "--type", "m7g.large", "--type", "m6g.large", "--profile", "node",
                         "--set", "dataset=covers", "--dry-run")  # fmt: skip
    assert again["run_instances"] == found["run_instances"]
    assert tomllib.loads(tries[0]["UserData"]) == {
        "store": machine.store,
        "role": "render",
        "release": "fleet@3",
        "sha256": published["boot_sha256"],
        "node": "r1",
        "run": [
            "boxlink",
            "up",
            "render",
            "--data",
            "{data}",
            "--release",
            "{release}",
            "--node",
            "r1",
            "--set",
            "dataset=covers",
        ],
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--node", "a", "--count", "2"], "--count"),
        (["--stop"], "--stop is for local nodes"),
        (["--image", "ami-1"], "--type is needed"),
        (["--image", "ami-1", "--type", "t", *FLEET, "--set", "dataset=" + "y" * 17000, "--dry-run"], "user-data"),
        (["--node", "../x", "--local", "nodes"], "no node name"),
        (["--local", "nodes", "--set", "nosuch=1"], "has no value"),
        (["--local", "nodes", "--set", "nosuch=1", "--dry-run"], "has no value"),
        (["--local", "nodes", "--set", "listen=bad", "--dry-run"], "is an address"),
    ],
)
def test_refused(machine: Machine, words: list[str], says: str) -> None:
    if "--release" in words:
        release(machine, 1)
    assert says in machine.json("launch", "render", *words, code=2)["error"]["message"]
    assert not (machine.place / "nodes").exists()
