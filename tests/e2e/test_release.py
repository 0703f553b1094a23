"""`boxlink release` as an operator uses it: programs installed from a release's wheels, and nodes that run them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core.rollout import NodeSpec, Phase, Rollout, State, Step
from tests.e2e.boxlink_process import Machine, members, started, wait_for_end
from tests.e2e.test_up import until, up
from tests.e2e.test_up_admin import ask, metric
from tests.tiny_wheel import write_wheel
from tools.fleet import local_nodes
from tools.fleet.node_file import LocalNode, write_node
from tools.fleet.one_up import holder

ROLE = 'role = "echo"\n[values]\nlisten = "0.0.0.0:1"\n[[process]]\nname = "a"\nrun = ["tool", "{listen}"]\n'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.run("init")
    machine.run("release", "key", "fleet.key")
    (tmp_path / "build/roles").mkdir(parents=True)
    (tmp_path / "build/roles/echo.toml").write_text(ROLE)
    write_wheel(tmp_path / "build/wheels", "1")
    try:
        yield machine
    finally:
        for node in local_nodes.nodes(tmp_path / "nodes"):
            local_nodes.stop(node, 10)


def says(node: LocalNode) -> str:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{node.ports['listen']}/") as answer:
        return str(answer.read().decode())
    return ""


TRUST = ("--trust", "fleet.key.pub")
INTO = ("--into", "here")


def test_key_publish_fetch_activate_rollback(machine: Machine) -> None:
    assert stat.S_IMODE((machine.place / "fleet.key").stat().st_mode) == 0o600
    assert machine.json("release", "key", "fleet.key", code=13)["error"]["kind"] == "conflict"
    first = machine.json("release", "publish", "fleet", "build", "--key", "fleet.key")
    assert first["key"] == (machine.place / "fleet.key.pub").read_text().strip()
    assert (first["seq"], first["is_current"]) == (1, True)
    assert machine.json("release", "fetch", "fleet", *INTO, code=2)["error"]["message"].endswith("is not trusted")
    fetched = machine.json("release", "fetch", "fleet", *INTO, *TRUST)
    assert (fetched["seq"], fetched["is_new"]) == (1, True)
    tool = machine.place / "here/fleet/current/venv/bin/tool"
    assert not tool.exists()
    assert machine.json("release", "activate", "fleet", *INTO, *TRUST)["is_new"]
    assert subprocess.run([tool, "word"], capture_output=True, check=True).stdout == b"1 word\n"
    # The environment names the directory that it has now, not the one in which it was made.
    assert ".partial" not in tool.read_text()
    (code,) = (machine.place / "here/fleet/1/venv/lib").rglob("tool.*.pyc")
    assert f"{machine.place}/here/fleet/1/venv/lib".encode() in code.read_bytes()
    (machine.place / "build/wheels/tool-1-py3-none-any.whl").unlink()
    write_wheel(machine.place / "build/wheels", "2")
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    machine.run("release", "fetch", "fleet", *INTO, *TRUST)
    assert subprocess.run([tool], capture_output=True, check=True).stdout == b"1\n"
    machine.run("release", "activate", "fleet", "2", *INTO, *TRUST)
    assert subprocess.run([tool], capture_output=True, check=True).stdout == b"2\n"
    rows = machine.json("release", "ls", "fleet", *INTO)["seqs"]
    signs = [(row["seq"], row["is_current"], row["is_here"], row["is_active"], row["is_previous"]) for row in rows]
    assert signs == [(1, False, True, False, True), (2, True, True, True, False)]
    assert machine.json("release", "rollback", "fleet", *INTO)["seq"] == 1
    assert subprocess.run([tool], capture_output=True, check=True).stdout == b"1\n"
    assert b"active" in machine.run("release", "ls", "fleet", *INTO)


def test_what_a_hint_says_is_what_helps(machine: Machine) -> None:
    """The command lines of hints are run as they stand, with who is trusted behind them."""
    for version in ("1", "2"):
        (machine.place / "build/version").write_text(version)
        machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")

    def hint(*words: object, code: int = 10) -> str:
        found: str = machine.json(*words, code=code)["error"]["hint"]
        return found

    def follow(text: str) -> None:
        assert text.startswith("boxlink ")
        machine.run(*shlex.split(text)[1:], *TRUST)

    follow(hint("release", "activate", "fleet", *INTO))
    assert (machine.place / "here/fleet/2").is_dir(), "the current one"
    follow(hint("release", "activate", "fleet@1", *INTO, *TRUST))
    assert (machine.place / "here/fleet/1").is_dir()
    machine.run("release", "activate", "fleet", "--seq", "2", *INTO, *TRUST)
    follow(hint("release", "rollback", "fleet", *INTO))
    assert os.readlink(machine.place / "here/fleet/current") == "1"
    machine.run("release", "activate", "fleet@2", *INTO, *TRUST)
    both = machine.json("release", "activate", "fleet@2", "1", *INTO, code=2)["error"]["message"]
    assert both == "which seq of fleet: 1 or 2?"
    for words in (("release", "fetch", "fleet@9", *INTO), ("channel", "set", "stable", "fleet", "9", "--release")):
        assert hint(*words) == "boxlink release ls fleet lists them"
    machine.run("channel", "set", "stable", "fleet", "2", "--release")
    back = hint("channel", "set", "stable", "fleet", "1", "--release", code=13)
    machine.run(*shlex.split(back.partition(",")[0])[1:])
    assert machine.json("channel", "ls")["channels"][0]["seq"] == 1


def test_old_ones_are_pruned_and_none_that_is_needed(machine: Machine) -> None:
    place = machine.place / "here/fleet"
    for version in ("1", "2", "3", "4", "5"):
        (machine.place / "build/version").write_text(version)
        machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
        machine.run("release", "fetch", "fleet", *INTO, *TRUST)
        if version != "5":
            machine.run("release", "activate", "fleet", *INTO, *TRUST)
    (place / "1.tar.gz").write_bytes(b"a boot tar")
    (place / "2.partial").mkdir()
    (place / "6.partial").mkdir()
    (place / "7.gone/half").mkdir(parents=True)
    with subprocess.Popen([place / "2/venv/bin/python", "-c", "input()"], stdin=subprocess.PIPE) as user:
        planned = machine.json("release", "prune", "fleet", *INTO, "--dry-run")
        assert planned["gone"] == [1]
        assert planned["kept"] == {
            "2": f"process {user.pid} uses it", "3": "it ran before", "4": "it runs", "5": "not activated yet",
        }  # fmt: skip
        assert (place / "1/version").exists()
        assert machine.json("release", "prune", "fleet", *INTO)["gone"] == [1]
        standing = {path.name for path in place.iterdir()}
        assert standing == {
            *"2345", *(f"{seq}.{what}" for seq in range(2, 6) for what in ("json", "installed", "whole")),
            "2.ran", "3.ran", "6.partial", "current", "previous", "lock",
        }  # fmt: skip
        user.communicate(b"\n")
    assert machine.json("release", "prune", "fleet", *INTO)["gone"] == [2]
    assert machine.json("release", "rollback", "fleet", *INTO)["seq"] == 3
    assert subprocess.run([place / "current/venv/bin/tool"], capture_output=True, check=True).stdout == b"1\n"
    kept = machine.json("release", "prune", "fleet", *INTO)["kept"]
    assert kept == {"3": "it runs", "4": "it ran, until an older one was taken", "5": "not activated yet"}
    assert machine.json("release", "prune", "other", *INTO, code=10)["error"]["kind"] == "missing"


def test_a_damaged_statement_is_named_and_the_others_are_listed(machine: Machine) -> None:
    for version in ("1", "2", "3"):
        (machine.place / "build/version").write_text(version)
        machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    signed = machine.place / "store/release/fleet/signed"
    (signed / f"{2:020}").write_bytes(b"{}")
    found = machine.json("release", "ls", "fleet", *INTO, code=20)
    assert [(row["seq"], bool(row["key"]), row["is_current"]) for row in found["seqs"]] == [
        (1, True, False), (2, False, False), (3, True, True),
    ]  # fmt: skip
    assert [row["error"] and row["error"]["kind"] for row in found["seqs"]] == [None, "corrupt", None]
    process = machine.start("release", "ls", "fleet", *INTO)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, b"damaged" in out.splitlines()[1]) == (20, True)
    assert f"signed/{2:020}".encode() in err
    (signed.parent / "current").write_bytes(b"no statement")
    found = machine.json("release", "ls", "fleet", *INTO, code=20)
    assert [row["is_current"] for row in found["seqs"]] == [False, False, False]
    assert len(found["errors"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "says_"),
    [
        (("release", "publish", "fleet", "build", "--key", "nosuch"), 2, "cannot be read"),
        (("release", "publish", "fleet", "build", "--key", "build/roles/echo.toml"), 2, "no private key"),
        (("release", "publish", "../x", "build"), 2, "no dataset name"),
        (("release", "fetch", "fleet", *INTO, *TRUST), 10, "no release fleet"),
        (("release", "fetch", "fleet", *INTO, "--trust", "fleet.key"), 2, "no public key"),
        (("release", "activate", "fleet", *INTO), 10, "was not fetched here"),
        (("release", "activate", "../..", *INTO), 2, "no dataset name"),
        (("release", "rollback", "fleet", *INTO), 10, "was not fetched here"),
        (("release", "ls", "fleet", *INTO), 10, "there is no release"),
        (("launch", "echo", "--local", "nodes", "--release", "fleet@x"), 2, "is no release"),
    ],
)
def test_refused(machine: Machine, words: tuple[str, ...], code: int, says_: str) -> None:
    assert says_ in machine.json(*words, code=code)["error"]["message"]


def test_a_wheel_for_another_machine_leaves_nothing_that_looks_whole(machine: Machine) -> None:
    wheels = machine.place / "build/wheels"
    (wheels / "tool-1-py3-none-any.whl").rename(wheels / "tool-1-cp27-cp27m-win32.whl")
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    error = machine.json("release", "fetch", "fleet", *INTO, *TRUST, code=11)["error"]
    assert "wheels" in error["message"]
    assert not (machine.place / "here/fleet/1").exists()
    # The next seq is right, and comes.
    (wheels / "tool-1-cp27-cp27m-win32.whl").rename(wheels / "tool-1-py3-none-any.whl")
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    assert machine.json("release", "fetch", "fleet", *INTO, *TRUST)["seq"] == 2


def test_nodes_run_the_programs_and_roles_of_their_release(machine: Machine) -> None:
    """Two nodes of two releases side by side, as an upgrade has them."""
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    launch = ("launch", "echo", "--local", "nodes", *TRUST)
    (old,) = machine.json(*launch, "--release", "fleet@1", "--node", "a")["nodes"]
    assert old["release"] == "fleet@1"
    write_wheel(machine.place / "build/wheels", "2")
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    assert machine.json(*launch, "--release", "fleet", "--node", "a", code=13)["error"]["kind"] == "conflict"
    (new,) = machine.json(*launch, "--release", "fleet", "--node", "b")["nodes"]
    assert new["release"] == "fleet@2"
    found = {node.node: node for node in local_nodes.nodes(machine.place / "nodes")}
    assert set(found) == {"a", "b"}
    # Whom to trust with the releases that they may follow was said once.
    key = os.fsencode(machine.place / "fleet.key.pub")
    assert b"--trust\0" + key in Path(f"/proc/{found['a'].pid}/cmdline").read_bytes()
    until(lambda: says(found["a"]) == "1 a" and says(found["b"]) == "2 b")
    machine.run("launch", "echo", "--local", "nodes", "--node", "a", "--stop")
    assert says(found["a"]) == ""
    assert says(found["b"]) == "2 b"
    (again,) = machine.json(*launch, "--release", "fleet", "--node", "a")["nodes"]
    assert (again["release"], again["ports"]) == ("fleet@2", old["ports"])
    until(lambda: says(found["a"]) == "2 a")


def test_no_key_in_what_others_can_see(machine: Machine) -> None:
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    lines = (machine.place / "fleet.key").read_text().splitlines()
    secret = lines[1].encode()
    assert len(secret) > 40
    for path in machine.place.rglob("*"):
        if path.is_file() and path.name != "fleet.key":
            assert secret not in path.read_bytes()
    assert os.stat(machine.place / "fleet.key").st_mode & 0o077 == 0


def test_upgrades_are_shown_and_not_taken_back_to_what_is_not_trusted(machine: Machine) -> None:
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    old = NodeSpec(node="echo-1", role="echo", release="fleet@1")
    step = Step(old=old, new=old.model_copy(update={"node": "echo-000001-1"}), batch=0, phase=Phase.DRAINING)
    place = f"{os.uname().nodename}:{machine.place / 'nodes'}"
    rollout = Rollout(id="echo-000001", role="echo", place=place, steps=[step], at="")
    journal = machine.place / "store/upgrade/echo-000001"
    journal.parent.mkdir()
    journal.write_text(rollout.model_dump_json())
    words = ("upgrade", "echo", "--local", "nodes", "--abort")
    assert "not trusted" in machine.json(*words, code=2)["error"]["message"]
    assert json.loads(journal.read_text())["state"] == "running", "nothing was begun"
    shown = machine.json("status", "--fleet")
    assert [(each["id"], each["state"], each["done"]) for each in shown["upgrades"]] == [("echo-000001", "running", 0)]
    assert shown["alarms"] == []
    # Whoever drove it may be gone: how long ago it moved is said, and after a while it is an alarm.
    for moved, says in (("2026-01-01T00:00:00Z", ["upgrade echo-000001 has not moved for "]), ("no time", [])):
        journal.write_text(rollout.model_copy(update={"at": moved, "driver": "op"}).model_dump_json())
        shown = machine.json("status", "--fleet")
        assert [alarm.startswith(text) for alarm, text in zip(shown["alarms"], says, strict=True)] == [True] * len(says)
        assert shown["upgrades"][0]["driver"] == "op"
    failed = {"state": State.FAILED, "reason": "echo-1 did not come back"}
    journal.write_text(rollout.model_copy(update=failed).model_dump_json())
    machine.run("status", "--fleet", "--check", code=3)
    shown = machine.json("status", "--fleet")
    assert (shown["upgrades"], shown["alarms"]) == ([], ["upgrade echo-000001 failed: echo-1 did not come back"])


def test_a_paused_upgrade_names_the_key_that_it_needs(machine: Machine) -> None:
    """Whoever pauses it need not name it: of the keys that nodes here were launched with the one that signed it."""
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    old = NodeSpec(node="echo-1", role="echo", release="fleet@1")
    step = Step(old=old, new=old.model_copy(update={"node": "echo-000001-1", "values": {"a": "b"}}), batch=0)
    place = f"{os.uname().nodename}:{machine.place / 'nodes'}"
    rollout = Rollout(id="echo-000001", role="echo", place=place, steps=[step], at="")
    journal = machine.place / "store/upgrade/echo-000001"
    journal.parent.mkdir()
    journal.write_text(rollout.model_dump_json())
    nodes, key = machine.place / "nodes", machine.place / "fleet.key.pub"
    words = ("upgrade", "echo", "--local", "nodes", "--pause")
    begins, ends = f"boxlink upgrade echo --local {nodes} --trust ", " --set a=b"
    assert machine.json(*words)["goes_on_with"] == f"{begins}FILE{ends}"
    machine.run("release", "key", "other.key")
    for name, signer in (("echo-1", "other.key.pub"), ("echo-2", "fleet.key.pub")):
        (nodes / name).mkdir(parents=True)
        trust = [str(machine.place / signer)]
        write_node(LocalNode(node=name, role="echo", trust=trust, at="", directory=nodes / name))
    assert machine.json(*words)["goes_on_with"] == f"{begins}{key}{ends}"
    assert machine.json(*words, "--trust", "fleet.key.pub")["goes_on_with"] == f"{begins}{key}{ends}"


def test_a_release_without_programs_of_its_own_is_told_from_one_with(machine: Machine) -> None:
    with started(machine, "release", "publish", "fleet", "build", "--key", "fleet.key") as process:
        _, said = process.communicate(timeout=60)
    assert b"boxlink: it brings no boxlink: its roles are run by the one that is on each machine\n" in said


FOLLOWING = f'release_channel = "stable"\nrelease_spread_s = 0\n{ROLE}'


def publish(machine: Machine, version: str, *words: str, program: str = "tool") -> None:
    for path in (machine.place / "build/wheels").iterdir():
        path.unlink()
    write_wheel(machine.place / "build/wheels", version, program)
    machine.run("release", "publish", "fleet", "build", *words)


def follow_from_the_first(machine: Machine, role: str = FOLLOWING) -> tuple[str, ...]:
    """A first release, signed and active here, of a channel that is looked at often; the words of an ``up`` of it."""
    (machine.place / "boxlink.toml").write_text("poll_s = 0.3\n")
    (machine.place / "build/roles/echo.toml").write_text(role)
    publish(machine, "1", "--key", "fleet.key")
    machine.run("channel", "set", "stable", "fleet", "1", "--release")
    machine.run("release", "fetch", "fleet", *INTO, *TRUST)
    machine.run("release", "activate", "fleet", *INTO, *TRUST)
    return "echo", "--release", "here/fleet/current", "--set", "listen=127.0.0.1:0", *TRUST


@pytest.mark.parametrize("what", ["its up ends", "its process fails"])
def test_a_newer_release_that_does_not_live_is_refused_and_the_one_before_runs_again(
    machine: Machine, what: str
) -> None:
    """It is tried once, and no more until the channel names another; a kill meanwhile finds the proven one current."""
    words = follow_from_the_first(machine)
    path, signed = machine.place / "build/roles/echo.toml", ("--key", "fleet.key")
    with up(machine, *words) as running:
        running.wait("started", process="follow-release")
        if what == "its up ends":
            publish(machine, "2", *signed, program="boxlink")
        else:
            path.write_text(FOLLOWING.replace('["tool", "{listen}"]', '["sh", "-c", "exit 9; {listen}"]'))
            publish(machine, "2", *signed)
        machine.run("channel", "set", "stable", "fleet", "2", "--release")
        refused = running.wait("refused", seq=2)
        assert refused["back_to"] == 1
        running.wait("up", release=str(machine.place / "here/fleet/1"), count=2)
        until(lambda: any("seq 2 is not taken" in said["line"] for said in running.all("output")))
        path.write_text(FOLLOWING)
        publish(machine, "3", *signed)
        assert os.readlink(machine.place / "here/fleet/current") == "1"
        machine.run("channel", "set", "stable", "fleet", "3", "--release")
        running.wait("activated", seq=3)
        assert os.readlink(machine.place / "here/fleet/current") == "3"
        assert len(running.all("refused")) == 1, "it was tried once"
        assert running.process.poll() is None, "it is the same process"
        assert running.end() == 0
        assert not members(running.process.pid)


def test_up_tells_how_the_channel_is_followed(machine: Machine) -> None:
    """Also one that the role does not name."""
    words = follow_from_the_first(machine, ROLE)
    with up(machine, *words, "--follow", "stable", "--admin", "127.0.0.1:0") as running:
        admin = running.wait("up")["admin"]
        until(lambda: metric(admin, "release_wanted_seq") == 1)
        assert (metric(admin, "release_seq"), metric(admin, "release_failing")) == (1, 0)
        assert metric(admin, "process_running", process="follow-release") == 1
        publish(machine, "2", "--key", "fleet.key")
        statement = machine.place / f"store/release/fleet/signed/{2:020}"
        statement.write_text(json.dumps({**json.loads(statement.read_text()), "key": "", "signature": ""}))
        machine.run("channel", "set", "stable", "fleet", "2", "--release")
        until(lambda: metric(admin, "release_failing") == 1)
        assert (metric(admin, "release_seq"), metric(admin, "release_wanted_seq")) == (1, 2)
        assert "is not signed" in ask(admin, "/healthz")[1]
        machine.run("channel", "set", "stable", "fleet", "1", "--release", "--back")
        until(lambda: metric(admin, "release_failing") == 0)
        assert running.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_while_a_newer_release_is_on_trial(machine: Machine, number: signal.Signals) -> None:
    """All ends, nothing is refused for it, and the proven release is the one that starts next, and tries it again."""
    words = follow_from_the_first(machine)
    publish(machine, "2", "--key", "fleet.key")
    with up(machine, *words) as running:
        running.wait("started", process="follow-release")
        machine.run("channel", "set", "stable", "fleet", "2", "--release")
        running.wait("up", release=str(machine.place / "here/fleet/2"))
        running.wait("started", 2, process="a")
        held = holder(machine.place / "data", "echo")
        assert held is not None
        assert held.pid == running.process.pid, "who is to be asked to end"
        assert running.end(number) == (0 if number == signal.SIGTERM else -number)
        assert not wait_for_end(running.process.pid)
        assert not running.all("refused")
        assert not running.all("activated")
    assert os.readlink(machine.place / "here/fleet/current") == "1"
    with up(machine, *words) as running:
        assert running.wait("up")["release"] == str(machine.place / "here/fleet/1")
        running.wait("up", release=str(machine.place / "here/fleet/2"))


def test_nodes_that_run_go_over_to_what_their_channel_names(machine: Machine) -> None:
    """The same `up` goes on as that of the newer release: drained in order, then started; what is not signed, or is
    older, changes nothing."""
    words, signed = follow_from_the_first(machine), ("--key", "fleet.key")
    with up(machine, *words) as running:
        first = running.wait("started", process="a")
        running.wait("started", process="follow-release")
        publish(machine, "2", *signed)
        publish(machine, "3", *signed)
        statement = machine.place / f"store/release/fleet/signed/{3:020}"
        statement.write_text(json.dumps({**json.loads(statement.read_text()), "key": "", "signature": ""}))
        machine.run("channel", "set", "stable", "fleet", "3", "--release")
        running.wait("output", process="follow-release")
        until(lambda: any("is not signed" in said["line"] for said in running.all("output", process="follow-release")))
        assert running.all("renewing") == []
        (machine.place / "build/roles/echo.toml").unlink()
        publish(machine, "4", *signed)
        machine.run("channel", "set", "stable", "fleet", "4", "--release")
        until(lambda: any("there is no role echo" in said["line"] for said in running.all("output")))
        assert running.all("renewing") == []
        machine.run("channel", "set", "stable", "fleet", "2", "--release", "--back")
        running.wait("renewing")
        second = running.wait("started", 2, process="a")
        assert second["pid"] != first["pid"]
        assert running.process.poll() is None, "it is the same process"
        assert os.readlink(machine.place / "here/fleet/current") == "1", "it is on trial"
        running.wait("activated", seq=2)
        assert os.readlink(machine.place / "here/fleet/current") == "2"
        assert os.readlink(machine.place / "here/fleet/previous") == "1"
        story = [said["event"] for said in running.events if said.get("process") == "a" and said["event"] != "output"]
        assert story == ["started", "stopping", "ended", "started"]
        begun = running.wait("up", 2)
        assert begun["release"] == str(machine.place / "here/fleet/2")
        machine.run("channel", "set", "stable", "fleet", "1", "--release", "--back")
        until(lambda: any("older than seq 2" in said["line"] for said in running.all("output")))
        machine.run("channel", "freeze", "stable")
        assert running.end() == 0
        assert len(running.all("started", process="a")) == 2
    assert sorted(path.name for path in (machine.place / "here/fleet").iterdir() if path.name.isdigit()) == [
        "1", "2", "4",
    ], "the one that could not run was not activated"  # fmt: skip


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, ""), (signal.SIGINT, "boxlink: interrupted")])
def test_a_follower_that_is_told_to_end_ends_without_a_word(
    machine: Machine, number: signal.Signals, said: str
) -> None:
    """So `boxlink up` ends it. Who interrupts it by hand is told what that means."""
    machine.run("release", "publish", "fleet", "build", "--key", "fleet.key")
    machine.run("channel", "set", "stable", "fleet", "1", "--release")
    words = ("release", "follow", "fleet", "--channel", "stable", "--running", "2", *INTO, *TRUST)
    with started(machine, *words) as process:
        assert process.stderr is not None
        assert b"older than seq 2" in process.stderr.readline(), "it waits"
        process.send_signal(number)
        rest = process.stderr.read().decode()
        assert process.wait(30) == 128 + number
    assert said in rest
    assert bool(rest) == bool(said)


def test_a_role_that_follows_needs_a_release(machine: Machine) -> None:
    (machine.place / "roles").mkdir()
    (machine.place / "roles/echo.toml").write_text(FOLLOWING.replace('["tool", "{listen}"]', '["sleep", "600"]'))
    refused = machine.json("up", "echo", code=2)["error"]
    assert "follows channel stable, and no release of it runs" in refused["message"]


def runs_in(machine: Machine, seq: int) -> str:
    return str(machine.place / f"here/fleet/{seq}")


def test_a_rollback_is_followed_by_the_up_that_runs(machine: Machine) -> None:
    """Without any channel; said twice, and where none runs, it comes to the same."""
    tool = ROLE.replace(
        '["tool", "{listen}"]',
        '["sh", "-c", "trap \'echo told\' USR1; echo runs; while :; do sleep 0.1; done; {listen}"]',
    )
    words = follow_from_the_first(machine, tool)
    publish(machine, "2", "--key", "fleet.key")
    machine.run("release", "fetch", "fleet", *INTO, *TRUST)
    machine.run("release", "activate", "fleet", *INTO, *TRUST)
    with up(machine, *words) as running:
        assert running.wait("up")["release"] == runs_in(machine, 2)
        running.wait("started", process="a")
        assert machine.json("release", "rollback", "fleet", *INTO)["is_new"]
        assert running.wait("up", 2)["release"] == runs_in(machine, 1)
        running.wait("started", 2, process="a")
        assert not machine.json("release", "rollback", "fleet", *INTO)["is_new"]
        story = [said["event"] for said in running.events if said.get("process") == "a" and said["event"] != "output"]
        assert story == ["started", "stopping", "ended", "started"]
        assert len(running.all("renewing")) == 1
        running.wait("output", 2, process="a", line="runs")
        running.process.send_signal(signal.SIGUSR1)
        running.wait("output", process="a", line="told")
        # Activated again it runs when it is started, and what runs then is not taken for what was taken back.
        machine.run("release", "activate", "fleet", "2", *INTO, *TRUST)
        assert running.process.poll() is None, "it is the same process"
        assert running.end() == 0
        assert len(running.all("renewing")) == 1
    with up(machine, *words) as running:
        assert running.wait("up")["release"] == runs_in(machine, 2)
        running.wait("started")
        assert running.end() == 0
    assert machine.json("release", "rollback", "fleet", *INTO)["seq"] == 1
    with up(machine, *words) as running:
        assert running.wait("up")["release"] == runs_in(machine, 1)
        running.wait("started")
        assert running.end() == 0
        assert not running.all("renewing")


@pytest.mark.parametrize("when", ["on trial", "proven"])
def test_what_a_rollback_took_back_is_not_followed_again(machine: Machine, when: str) -> None:
    """Until the channel has named another, or a person activates it."""
    words = follow_from_the_first(machine)
    publish(machine, "2", "--key", "fleet.key")
    with up(machine, *words) as running:
        running.wait("started", process="follow-release")
        machine.run("channel", "set", "stable", "fleet", "2", "--release")
        running.wait("up", release=runs_in(machine, 2))
        if when == "proven":
            running.wait("activated", seq=2)
        running.wait("started", 2, process="a")
        assert machine.json("release", "rollback", "fleet", *INTO)["seq"] == 1
        running.wait("up", 2, release=runs_in(machine, 1))
        until(lambda: any("a rollback took it back" in said["line"] for said in running.all("output")))
        assert os.readlink(machine.place / "here/fleet/current") == "1"
        if when == "proven":
            running.process.send_signal(signal.SIGUSR1)  # which nobody here expects, and is no word to end
            machine.run("channel", "set", "stable", "fleet", "1", "--release", "--back")
            until(lambda: not (machine.place / "here/fleet/refused").exists())
            machine.run("channel", "set", "stable", "fleet", "2", "--release")
            running.wait("activated", 2, seq=2)
            running.wait("started", 4, process="a")
        assert running.process.poll() is None, "it is the same process"
        assert not running.all("refused")
        assert running.end() == 0
