"""Rolling upgrades of render nodes behind the real proxy, under a load that misses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_fleet import changed
from tests.fleet import Fleet, Load, Proxy, asks, drawn, until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import nodes, stop

ROLE = """
role = "render"

[values]
listen = "127.0.0.1:0"

[[process]]
name = "sync"
run = ["boxlink", "sync", "--data", "{data}", "--poll", "0.5"]

[[process]]
name = "render"
run = ["boxlink", "render", "--data", "{data}", "--dataset", "covers", "--listen", "{listen}", "--lease", "2"]
"""


class Rolled:
    """A fleet whose render nodes are those of ``boxlink launch --local``."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.place = fleet.root / "nodes"
        self.role = fleet.root / "render.toml"
        self.operator = "operator"
        self.role.write_text(ROLE)

    def boxlink(self, *words: str, code: int = 0, seconds: float = 240) -> dict[str, Any]:
        done = subprocess.run(
            [*boxlink_command(), *words, "--json"],
            env=self.environ, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "BOXLINK_STORE": f"file://{self.fleet.store}",
            "BOXLINK_CONFIG": str(self.fleet.root / "boxlink.toml"),
            "BOXLINK_NODE": self.operator,
            "XDG_STATE_HOME": str(self.fleet.root / self.operator / "state"),
            "XDG_CACHE_HOME": str(self.fleet.root / self.operator / "cache"),
        }

    def launch(self, count: int) -> None:
        self.boxlink("launch", str(self.role), "--local", str(self.place), "--count", str(count), "--seq", "covers=1")

    def serving(self, count: int) -> Proxy:
        """So many nodes, behind a proxy that has found them."""
        self.launch(count)
        proxy = self.fleet.proxy()
        until(lambda: list(proxy.states().values()) == ["active"] * count, "all are found")
        return proxy

    def upgrade_words(self, admin: str, *words: str) -> list[str]:
        return ["upgrade", "render", "--local", str(self.place), "--proxy", admin, "--bake", "1", *words]

    def names(self) -> list[str]:
        return [node.node for node in nodes(self.place)]

    def close(self) -> None:
        for node in nodes(self.place):
            stop(node, 0)


@pytest.fixture
def rolled(fleet: Fleet) -> Iterator[Rolled]:
    rolled = Rolled(fleet)
    try:
        yield rolled
    finally:
        rolled.close()


def admin_of(proxy: Any) -> str:
    return f"127.0.0.1:{proxy._admin}"


def test_three_nodes_are_rolled_to_a_new_seq_without_a_lost_request(rolled: Rolled) -> None:
    fleet = rolled.fleet
    before, after = small_wall(40), changed(small_wall(40))
    fleet.publish(before)
    proxy = rolled.serving(3)
    fleet.publish(after)
    wall = proxy.get("/wall.json").json()["wall"]
    tiles = drawn(before)
    with Load(proxy.port, asks(str(wall), tiles)) as load:
        load.wait(500)
        done = rolled.boxlink(*rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2"))
        load.wait(500)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert done["state"] == "done"
    assert rolled.names() == ["render-000001-1", "render-000001-2", "render-000001-3"], "the old ones are gone"
    assert proxy.get("/wall.json").json()["seq"] == 2
    again = rolled.boxlink(*rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2"))
    assert again["id"] is None, "every node is so already"


def test_one_that_never_gets_ready_is_taken_back(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    rolled.role.write_text(ROLE.replace('["boxlink", "render"', '["sh", "-c", "exec sleep 1000", "sh", "render"'))
    fleet.publish(changed(small_wall(10)))
    words = rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2", "--ready-within", "6")
    failed = rolled.boxlink(*words, code=13)
    assert "render-000001-1 was not ready within 6 s" in failed["error"]["message"]
    assert rolled.names() == ["render-1", "render-2"]
    assert sorted(fleet.registrations()) == sorted(f"proxy/{address.replace(':', '.p')}" for address in proxy.states())


@pytest.mark.parametrize("what", ["crashes", "is slow"])
def test_a_new_program_that(rolled: Rolled, what: str) -> None:
    """The role's second version has another process in it; the first nodes keep the first."""
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    fleet.publish(changed(small_wall(10)))
    run, program = '["boxlink", "render"', boxlink_command()[0]
    slow = f"""["sh", "-c", "sleep 8; exec {program} \\"$@\\"", "sh", "render\""""
    instead, ready_s = {"crashes": ('["false"', "8"), "is slow": (slow, "90")}[what]
    rolled.role.write_text(ROLE.replace(run, instead))
    wall = proxy.get("/wall.json").json()["wall"]
    words = rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2", "--ready-within", ready_s)
    with Load(proxy.port, asks(str(wall), drawn(small_wall(10)))) as load:
        if what == "crashes":
            failed = rolled.boxlink(*words, code=13)
            assert "has not registered" in failed["error"]["message"]
            assert re.search(r"\(render ended (\d+ times|twice), with code 1\)", failed["error"]["message"])
        else:
            assert rolled.boxlink(*words)["state"] == "done"
        load.wait(100)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert len(rolled.names()) == 2


def test_the_store_is_away_in_the_middle(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    fleet.publish(changed(small_wall(10)))
    wall = proxy.get("/wall.json").json()["wall"]
    words = rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2")
    with Load(proxy.port, asks(str(wall), drawn(small_wall(10)))) as load:
        process = subprocess.Popen(
            [*boxlink_command(), *words],
            env=rolled.environ,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        with process.stderr as lines:
            assert any("is ready" in line for line in lines)
            away, began = fleet.store.rename(fleet.root / "away"), time.monotonic()
            # It tries for a while before it says so.
            said = next(line for line in lines if "does not answer" in line)
            time.sleep(max(0.0, 10 - (time.monotonic() - began)))
            away.rename(fleet.store)
            said += lines.read()
        assert process.wait(240) == 0, said
    assert "does not answer" in said  # the store, or who asks it for all
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert rolled.names() == ["render-000001-1", "render-000001-2"]


def test_an_operator_who_is_killed_is_followed_by_another(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    fleet.publish(changed(small_wall(10)))
    wall = proxy.get("/wall.json").json()["wall"]
    words = rolled.upgrade_words(admin_of(proxy), "--seq", "covers=2")
    with Load(proxy.port, asks(str(wall), drawn(small_wall(10)))) as load:
        for mark in ("is started", "is ready", "has ended"):
            rolled.operator = mark.replace(" ", "-")  # another one, with nothing of the former's
            process = subprocess.Popen(
                [*boxlink_command(), *words], env=rolled.environ, stderr=subprocess.PIPE, text=True
            )
            assert process.stderr is not None
            with process.stderr as lines:
                assert any(mark in line for line in lines)
                process.kill()
            process.wait()
        done = rolled.boxlink(*words)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert done["state"] == "done" or done["id"] is None
    assert rolled.names() == ["render-000001-1", "render-000001-2"]


def test_paused_and_aborted(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    rolled.launch(2)
    fleet.publish(changed(small_wall(10)))
    until(lambda: len(fleet.registrations()) == 2, "both have registered")
    words = ["upgrade", "render", "--local", str(rolled.place), "--bake", "0"]
    rolled.boxlink(*words, "--abort", code=10)
    process = subprocess.Popen(
        [*boxlink_command(), *words, "--seq", "covers=2"],
        env=rolled.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stdout is not None
    with process.stderr as lines, process.stdout as answer:
        assert any("is started" in line for line in lines)
        paused = rolled.boxlink(*words, "--pause")
        lines.read()
        said = answer.read()
    assert process.wait(60) == 0
    assert paused["state"] == "paused"
    goes_on = f"boxlink upgrade render --local {rolled.place} --bake 0 --seq covers=2"
    assert paused["goes_on_with"] == goes_on
    # The one that rolled was not told but by the journal; it says the same.
    assert "render-000001: paused, an operator paused it" in said
    assert "0 of 2 nodes are done; at work: render-1 (starting); not begun: render-2\n" in said
    assert f"the same command again goes on: {goes_on}\n" in said
    again = rolled.boxlink(*words, "--pause")
    told = ("state", "steps", "reason", "goes_on_with")
    assert [again[name] for name in told] == [paused[name] for name in told]
    assert again["requests"]["put"] == 0, "once more changes nothing"
    without = rolled.boxlink("upgrade", "render", "--pause")
    assert without["goes_on_with"] == goes_on.replace(" --bake 0", ""), "where its nodes are the journal has"
    conflict = rolled.boxlink(*words, "--seq", "covers=1", code=13)
    assert "is under way, to something else" in conflict["error"]["message"]
    again = rolled.boxlink("launch", "render", "--local", str(rolled.place), "--count", "2", code=13)
    assert "is about render-1, and has not ended" in again["error"]["message"]
    assert rolled.boxlink(*words, "--abort", "--dry-run")["state"] == "paused"
    elsewhere = rolled.boxlink("upgrade", "render", "--local", str(fleet.root / "other"), "--abort", code=13)
    assert "is of the nodes at" in elsewhere["error"]["message"]
    elsewhere = rolled.boxlink("upgrade", "render", "--abort", code=13)
    assert elsewhere["error"]["hint"].endswith(f"with --local {rolled.place}")
    aborted = rolled.boxlink(*words, "--abort")
    assert aborted["state"] == "rolled back"
    assert rolled.names() == ["render-1", "render-2"]
    until(lambda: len(fleet.registrations()) == 2, "both serve")


def test_a_seq_that_is_not_there_begins_nothing(rolled: Rolled) -> None:
    rolled.fleet.publish(small_wall(5))
    launch = ("launch", str(rolled.role), "--local", str(rolled.place))
    assert "has no seq 4" in rolled.boxlink(*launch, "--seq", "covers=4", code=10)["error"]["message"]
    assert not rolled.place.exists()
    rolled.launch(1)
    for more in ((), ("--dry-run",)):
        words = ("upgrade", "render", "--local", str(rolled.place), "--seq", "covers=2", *more)
        assert "has no seq 2" in rolled.boxlink(*words, code=10)["error"]["message"]
    assert rolled.names() == ["render-1"]
    wrong = rolled.boxlink("launch", "render", "--local", str(rolled.place), "--stop", "--node", "x", code=10)
    assert "render-1" in wrong["error"]["hint"]


@pytest.mark.parametrize(("word", "says"), [("nosuch=1", "has no value"), ("listen=bad", "is an address")])
def test_values_that_no_node_can_have_begin_nothing(rolled: Rolled, word: str, says: str) -> None:
    rolled.fleet.publish(small_wall(5))
    rolled.launch(1)
    words = ("upgrade", "render", "--local", str(rolled.place), "--set", word)
    for more in ((), ("--dry-run",)):
        assert says in rolled.boxlink(*words, *more, code=2)["error"]["message"]
    assert rolled.names() == ["render-1"]
    assert not (rolled.fleet.store / "upgrade").exists()


def test_what_a_person_is_told(rolled: Rolled, capfd: pytest.CaptureFixture[str]) -> None:
    rolled.fleet.publish(small_wall(5))
    words = ["upgrade", "render", "--local", str(rolled.place)]
    none = rolled.boxlink(*words, "--seq", "covers=1", code=10)["error"]
    assert none["message"] == f"no node of role render runs below {rolled.place}"
    assert "instances of EC2 are upgraded without --local" in none["hint"]
    assert "to what?" in rolled.boxlink(*words, code=2)["error"]["message"]
    assert "is no DATASET=SEQ" in rolled.boxlink(*words, "--seq", "covers", code=2)["error"]["message"]
    rolled.launch(1)
    rolled.fleet.publish(changed(small_wall(5)))
    wrong = rolled.boxlink(*words, "--seq", "covers=2", "--proxy", "127.0.0.1:9", code=11)
    assert "does not answer" in wrong["error"]["message"]
    launch = ("launch", str(rolled.role), "--local", str(rolled.place), "--count", "1")
    for seqs in ((), ("--seq", "covers=1")):
        assert rolled.boxlink(*launch, *seqs)["nodes"][0]["is_new"] is False
    for more in ((), ("--dry-run",)):
        other = rolled.boxlink(*launch, "--seq", "covers=2", *more, code=13)["error"]
        assert other["message"] == "node render-1 is up, and stays at seq 1 of covers, not at seq 2"
        assert other["hint"].startswith(f"boxlink upgrade render --local {rolled.place} --seq covers=2 ")
    assert (rolled.place / "render-1/data/covers/synch.active").read_text() == "seq=1\n", "what runs is left as it is"
    other = rolled.boxlink("upgrade", "proxy", *words[2:], "--seq", "covers=2", code=10)["error"]
    assert "there are: render-1 (role render)" in other["hint"]
    planned = rolled.boxlink(*words, "--seq", "covers=2", "--dry-run")
    assert [step["new"]["node"] for step in planned["steps"]] == ["render-000001-1"]
    assert planned["state"] == "planned"
    assert rolled.names() == ["render-1"]


def test_nodes_are_rolled_to_a_signed_release(rolled: Rolled) -> None:
    fleet, key = rolled.fleet, rolled.fleet.root / "fleet.key"
    fleet.publish(small_wall(10))
    rolled.boxlink("release", "key", str(key))

    def publish(note: str) -> None:
        roles = fleet.root / "release/roles"
        roles.mkdir(parents=True, exist_ok=True)
        (roles / "render.toml").write_text(ROLE + note)
        rolled.boxlink("release", "publish", "fleet", str(roles.parent), "--key", str(key))

    trust = ("--trust", f"{key}.pub")
    publish("# the first\n")
    words = ("render", "--local", str(rolled.place))
    rolled.boxlink("launch", *words, "--count", "2", "--seq", "covers=1", "--release", "fleet", *trust)
    proxy = fleet.proxy()
    until(lambda: list(proxy.states().values()) == ["active"] * 2, "both are found")
    publish("# the second\n")
    wall = proxy.get("/wall.json").json()["wall"]
    with Load(proxy.port, asks(str(wall), drawn(small_wall(10)))) as load:
        refused = rolled.boxlink(*rolled.upgrade_words(admin_of(proxy), "--release", "fleet"), code=2)
        assert "fleet" in refused["error"]["message"], "nobody trusts who signed it"
        assert rolled.names() == ["render-1", "render-2"]
        done = rolled.boxlink(*rolled.upgrade_words(admin_of(proxy), "--release", "fleet", *trust))
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert {step["new"]["release"] for step in done["steps"]} == {"fleet@2"}
    found = [backend for backend in proxy.backends().values() if backend["state"] == "active"]
    assert [backend["release"] for backend in found] == ["fleet@2", "fleet@2"]
