"""Taking an upgrade back on EC2, which does not list a new instance at once: none that was asked for runs on, and is
paid for, when the journal says that all is as before."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from synclib.clock import SeededEntropy
from synclib.core.machine import Machine
from synclib.core.registration import Registration
from synclib.core.rollout import NodeSpec, Phase, Rollout, State, Step
from synclib.engine.host import Host
from synclib.engine.rollout import Driver
from synclib.engine.rollout_journal import Journal
from synclib.store.base import Store
from synclib.store.memory import MemoryStore
from synclib.store.open import open_store
from synclib.volume.aws_calls import Calls
from tests.aws.boxlink_command import Publisher
from tests.aws.clients import client
from tests.aws.policies import policy_document
from tests.aws.refusal import Refused
from tests.aws.requests import IMAGE, KIND
from tests.aws.standin import Standin, running_standin
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.readiness import Readiness

HIDDEN_S = 30.0
STORE = "s3://covers-bucket/fleet"


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(store: Store, nodes: list[str], release: str) -> Iterator[None]:
    """What nodes that serve put into the store, and answer."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Healthy) for _ in nodes]
    try:
        for node, server in zip(nodes, servers, strict=True):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            body = Registration(handles=["/*"], node=node, release=release).model_dump_json().encode()
            store.put(f"proxy/127.0.0.1.p{server.server_address[1]}", body)
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class Operator:
    """Who drives: each has a fleet of its own, as each command has."""

    def __init__(self, standin: Standin, store: Store, place: Path) -> None:
        calls = Calls(standin.clock, SeededEntropy(1))
        machine = Machine(IMAGE, [KIND], list(standin.instances.subnets)[:1])
        self.fleet = Ec2Fleet(client(standin, "ec2"), Readiness(store, None), machine, STORE, calls)
        self.host = Host("operator", standin.clock, SeededEntropy(2), place / "state", place / "cache")
        self.journal = Journal(store, self.host)
        self.driver = Driver(self.journal, self.fleet, self.host, lambda text, _: print(text), ready_s_max=20, bake_s=0)


@pytest.fixture
def store() -> Store:
    return MemoryStore()


def spec(node: str) -> NodeSpec:
    return NodeSpec(node=node, role="render", release="fleet@1")


def rollout(count: int, phase: Phase) -> Rollout:
    steps = [Step(old=spec(f"render-{n}"), new=spec(f"new-{n}"), batch=0, phase=phase) for n in range(count)]
    return Rollout(id="render-000001", role="render", steps=steps, at="now")


def begun(standin: Standin, who: Operator, count: int) -> list[str]:
    """The old nodes, which every reader has seen."""
    nodes = [f"render-{number}" for number in range(count)]
    for node in nodes:
        who.fleet.start(spec(node))
    standin.clock.advance(HIDDEN_S + 60)
    return nodes


def live(standin: Standin) -> list[str]:
    """What runs, and is paid for, a while later."""
    standin.clock.advance(HIDDEN_S + 300)
    return sorted(
        record.tags["boxlink:node"]
        for record in standin.instances.records.values()
        if record.status.state not in ("shutting-down", "terminated")
    )


def test_no_room_for_the_last_of_a_batch(standin: Standin, store: Store, tmp_path: Path) -> None:
    who = Operator(standin, store, tmp_path)
    olds = begun(standin, who, 3)
    standin.script.hidden_s = HIDDEN_S

    def reached(operation: str, is_done: bool) -> None:
        if operation == "RunInstances" and standin.requests["RunInstances"] >= 3 + 3:
            standin.script.exhausted |= set(standin.site.zones)

    standin.script.reached = reached
    with serving(store, olds, "fleet@1"):
        done = who.driver.run(who.journal.create(rollout(3, Phase.WAITING)))
    assert (done.state, "room" in done.reason) == (State.ROLLED_BACK, True)
    assert len(standin.instances.records) == 5, "two were started before there was no room"
    assert live(standin) == olds


def test_not_ready_in_time_and_never_seen(standin: Standin, store: Store, tmp_path: Path) -> None:
    who = Operator(standin, store, tmp_path)
    olds = begun(standin, who, 1)
    standin.script.hidden_s = HIDDEN_S
    with serving(store, olds, "fleet@1"):
        done = who.driver.run(who.journal.create(rollout(1, Phase.WAITING)))
    assert done.state is State.ROLLED_BACK
    assert live(standin) == olds


@pytest.mark.parametrize("is_started", [False, True])
def test_another_takes_back_what_was_just_asked_for(
    standin: Standin, store: Store, tmp_path: Path, is_started: bool
) -> None:
    """Whoever began it was killed with its answer on the way, or just before it asked: nothing tells which."""
    first, second = (Operator(standin, store, tmp_path / name) for name in ("first", "second"))
    olds = begun(standin, first, 2)
    standin.script.hidden_s = HIDDEN_S
    entry = first.journal.create(rollout(2, Phase.STARTING))
    if is_started:
        first.fleet.start(spec("new-0"))
    with serving(store, olds, "fleet@1"):
        done = second.driver.run(second.driver.take(entry, state=State.ROLLING_BACK, reason="an operator's word"))
    assert done.state is State.ROLLED_BACK
    assert len(standin.instances.records) == 2 + is_started
    assert live(standin) == olds


def test_a_lost_answer_and_then_a_refusal(standin: Standin, store: Store, tmp_path: Path) -> None:
    """RunInstances is carried out, nothing is heard of it, and by the second try the operator's rights are gone."""
    who = Operator(standin, store, tmp_path)
    olds = begun(standin, who, 1)
    standin.script.hidden_s = HIDDEN_S

    def reached(operation: str, is_done: bool) -> None:
        if operation == "RunInstances" and not is_done and standin.requests["RunInstances"] > 2:
            raise Refused("UnauthorizedOperation", "not any more", status=403)

    standin.script.lose_answer("RunInstances")
    standin.script.reached = reached
    entry = who.journal.create(rollout(1, Phase.STARTING))
    with serving(store, olds, "fleet@1"):
        done = who.driver.run(entry)
    assert (done.state, "Unauthorized" in done.reason) == (State.ROLLED_BACK, True)
    assert len(standin.instances.records) == 2
    assert live(standin) == olds


def test_what_began_with_no_instance_is_taken_back_at_once(standin: Standin, store: Store, tmp_path: Path) -> None:
    who = Operator(standin, store, tmp_path)
    olds = begun(standin, who, 2)
    before = standin.clock.monotonic()
    with serving(store, olds, "fleet@1"):
        done = who.driver.run(
            who.driver.take(who.journal.create(rollout(2, Phase.WAITING)), state=State.ROLLING_BACK, reason="a word")
        )
    assert done.state is State.ROLLED_BACK
    assert standin.clock.monotonic() - before < 5


def launched(standin: Standin, tmp_path: Path) -> Publisher:
    """An operator with an operator's rights alone, and one instance of an unsigned release."""
    who = standin.identity("operator", policy_document("operator", f"file://{tmp_path}/operator/store"))
    operator = Publisher(tmp_path / "operator", standin, who)
    (tmp_path / "release/wheels").mkdir(parents=True)
    operator.run("release", "publish", "fleet", tmp_path / "release")
    machine = ["--image", IMAGE, "--type", KIND, "--subnet", next(iter(standin.instances.subnets))]
    operator.run("launch", "render", "--node", "render-1", "--release", "fleet", "--allow-unsigned", *machine)
    return operator


def test_upgrade_killed_as_it_starts_an_instance_and_taken_back(tmp_path: Path) -> None:
    """kill -9 of the command when EC2 has started the instance, --abort while no listing shows it yet."""
    with running_standin(tmp_path, pace=10.0) as standin:
        operator = launched(standin, tmp_path)
        store, _ = open_store(operator.store, {})
        command = ["upgrade", "render", "--seq", "covers=1", "--bake", "0", "--allow-unsigned"]
        with serving(store, ["render-1"], "fleet@1"):
            standin.script.hidden_s = 10 * HIDDEN_S
            with standin.locked():
                for record in standin.instances.records.values():
                    record.born -= 10 * HIDDEN_S
            refused = operator.json(*(word for word in command if word != "--allow-unsigned"), code=2)["error"]
            assert "is not signed" in refused["message"]
            operator.run_killed("RunInstances", 1, *command, is_done=True)
            with standin.locked():
                assert all(b"sha256 = " in record.user_data for record in standin.instances.records.values())
            assert operator.json(*command, "--abort")["state"] == "rolled back"
        with standin.locked():
            assert len(standin.instances.records) == 2
            states = {record.tags["boxlink:node"]: record.status.state for record in standin.instances.records.values()}
        assert states.pop("render-1") == "running"
        assert set(states.values()) <= {"shutting-down", "terminated"}


def test_who_goes_on_where_the_nodes_are_not_is_refused(tmp_path: Path) -> None:
    """In another region: nothing is seen of them there, and an old node would be taken for one that has ended. In
    another account the region is the same, and nothing of the role was ever seen."""
    with running_standin(tmp_path, pace=10.0) as standin:
        operator = launched(standin, tmp_path)
        store, _ = open_store(operator.store, {})
        command = ["upgrade", "render", "--seq", "covers=1", "--bake", "0", "--allow-unsigned"]
        with serving(store, ["render-1"], "fleet@1"):
            operator.run_killed("RunInstances", 1, *command, is_done=True)
        key = "upgrade/render-000001"
        before = store.get(key, size_max=1 << 20)
        assert before is not None
        assert json.loads(before.data)["place"] == "ec2 eu-central-1"
        environment = operator.environment()
        elsewhere = {**environment, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
        operator.environment = lambda: elsewhere  # type: ignore[method-assign]
        for words in (command, [*command, "--abort"]):
            refused = operator.json(*words, code=13)["error"]
            assert "is of the nodes at ec2 eu-central-1, not at ec2 us-east-1" in refused["message"]
        (tmp_path / "other").mkdir()
        with running_standin(tmp_path / "other", pace=10.0) as other:
            other.instances.images |= standin.instances.images
            of_other = {**environment, **other.environment(other.identity("operator", policy_document("operator")))}
            operator.environment = lambda: of_other  # type: ignore[method-assign]
            for words in (command, [*command, "--abort"]):
                refused = operator.json(*words, code=13)["error"]
                assert "was ever seen here" in refused["message"]
            assert other.requests["RunInstances"] == 0
        assert store.get(key, size_max=1 << 20, if_none_match=before.etag) is None, "nor was its driver overtaken"
