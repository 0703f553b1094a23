"""`boxlink launch` on EC2 with an operator's rights: killed at its request and run again it pays for one instance."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws.boxlink_command import Publisher
from tests.aws.policies import policy_document
from tests.aws.requests import IMAGE, KIND
from tests.aws.standin import Standin, running_standin
from tools.bootstrap.build import build_bootstrap

pytest.importorskip("tools.fleet.instance_request", reason="this boxlink has no launch verb")


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with running_standin(tmp_path, pace=100.0) as standin:
        yield standin


@pytest.fixture
def operator(standin: Standin, tmp_path: Path) -> Publisher:
    found = Publisher(
        tmp_path / "operator",
        standin,
        standin.identity("operator", policy_document("operator", f"file://{tmp_path}/operator/store")),
    )
    release = tmp_path / "release"
    (release / "wheels").mkdir(parents=True)
    (release / "readme").write_text("a release")
    found.run("release", "publish", "fleet", release)
    return found


def words(standin: Standin, *more: str) -> list[str]:
    subnets = [word for subnet in standin.instances.subnets for word in ("--subnet", subnet)]
    machine = ["--image", IMAGE, "--type", KIND, "--profile", "boxlink-node", *subnets]
    return ["launch", "render", "--release", "fleet", "--allow-unsigned", *machine, *more]


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("is_first_zone_full", [False, True])
def test_killed_and_run_again(standin: Standin, operator: Publisher, is_done: bool, is_first_zone_full: bool) -> None:
    """The first zone has room again by the second run."""
    if is_first_zone_full:
        standin.script.exhausted.add(standin.site.zones[0])
    operator.run_killed("RunInstances", 1, *words(standin, "--node", "render-1"), is_done=is_done)
    standin.script.exhausted.clear()
    started = operator.json(*words(standin, "--node", "render-1"))["nodes"]
    assert [resource.id for resource in standin.resources()] == [node["instance"] for node in started]


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize(
    ("operation", "count"),
    [("DescribeInstances", 1), ("RunInstances", 1), ("DescribeInstances", 2), ("RunInstances", 2)],
)
def test_new_names_are_noted_before_anything_is_asked(
    standin: Standin, operator: Publisher, operation: str, count: int, is_done: bool
) -> None:
    """Killed at each request, such as when the first of two instances is there and the answer to the second lost; the
    same command then makes no third."""
    operator.run_killed(operation, count, *words(standin, "--count", "2"), is_done=is_done)
    started = operator.json(*words(standin, "--count", "2"))["nodes"]
    assert [resource.id for resource in standin.resources()] == sorted(node["instance"] for node in started)
    assert len(started) == 2
    more = operator.json(*words(standin, "--count", "2"))["nodes"]
    assert {node["node"] for node in more}.isdisjoint(node["node"] for node in started), "done is done"


def test_instance_is_told_what_it_becomes_and_takes_version_2_alone(standin: Standin, operator: Publisher) -> None:
    [node] = operator.json(*words(standin, "--node", "render-1"))["nodes"]
    with standin.locked():
        record = standin.instances.records[node["instance"]]
    assert f'store = "{operator.store}"' in record.user_data.decode()
    assert record.metadata["HttpTokens"] == "required"
    assert record.profile == "boxlink-node"
    assert operator.who is not None
    assert operator.who.secret_key not in record.user_data.decode()


def test_dry_run_asks_for_nothing(standin: Standin, operator: Publisher) -> None:
    operator.json(*words(standin, "--node", "render-1", "--dry-run"))
    assert not standin.requests


@pytest.mark.parametrize("named", [["--node", "render-1"], ["--count", "2"]])
def test_dry_run_says_what_is_sent(standin: Standin, operator: Publisher, named: list[str]) -> None:
    """Each word of it, the token and, for new nodes, their names."""
    more = ["--set", "dataset=covers", "--seq", "covers=1", *named]
    planned = operator.json(*words(standin, *more, "--dry-run"))["run_instances"]
    sent: list[dict[str, Any]] = []
    taken = standin.instances.run_instances

    def noted(params: dict[str, Any]) -> dict[str, Any]:
        sent.append(params)
        return taken(params)

    standin.instances.run_instances = noted  # type: ignore[method-assign]
    started = operator.json(*words(standin, *more))["nodes"]
    assert [node["node"] for node in started] == list(planned)
    for params, tries in zip(sent, planned.values(), strict=True):
        user_data = base64.b64encode(tries[0]["UserData"].encode()).decode()
        assert params == {**tries[0], "UserData": user_data}
        assert 'release = "fleet@1"' in tries[0]["UserData"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_no_instance_would_boot_is_not_paid_for(standin: Standin, operator: Publisher, dry: list[str]) -> None:
    command = [word for word in words(standin, "--node", "render-1", *dry) if word != "--allow-unsigned"]
    assert "is not signed" in operator.json(*command, code=2)["error"]["message"]
    stranger = [str(operator.place / name) for name in ("a.key", "b.key")]
    for key in stranger:
        operator.run("release", "key", key)
    (operator.place.parent / "release/more").write_text("signed")
    operator.run("release", "publish", "other", operator.place.parent / "release", "--key", stranger[0])
    other = [word if word != "fleet" else "other" for word in command]
    for trust in ([], ["--trust", f"{stranger[1]}.pub"], ["--allow-unsigned"]):
        assert "not trusted" in operator.json(*other, *trust, code=2)["error"]["message"]
    assert not standin.requests
    operator.json(*other, "--trust", f"{stranger[0]}.pub")
    with standin.locked():
        assert all(b"sha256" not in record.user_data for record in standin.instances.records.values())


def booted(operator: Publisher, user_data: bytes) -> subprocess.CompletedProcess[str]:
    """A machine that trusts nobody's key, and has an address for a name."""
    place = operator.place / "machine"
    place.mkdir()
    (place / "bootstrap.pyz").write_bytes(build_bootstrap())
    (place / "node.toml").write_bytes(user_data)
    words = ["--user-data", place / "node.toml", "--root", place / "root", "--trusted", place / "none", "--no-run"]
    command = [sys.executable, "-I", place / "bootstrap.pyz", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def test_why_a_first_boot_failed_is_under_the_nodes_name(standin: Standin, operator: Publisher) -> None:
    """The machine trusts another key than the operator."""
    (operator.place.parent / "release/more").write_text("signed")
    operator.run("release", "key", operator.place / "a.key")
    operator.run("release", "publish", "other", operator.place.parent / "release", "--key", operator.place / "a.key")
    command = [word if word != "fleet" else "other" for word in words(standin, "--node", "render-1")]
    [node] = operator.json(*command, "--trust", f"{operator.place}/a.key.pub")["nodes"]
    with standin.locked():
        user_data = standin.instances.records[node["instance"]].user_data
    assert "not trusted" in booted(operator, user_data).stderr
    assert b"not trusted" in operator.run("logs", "render-1")


def test_an_unsigned_release_that_is_allowed_boots_pinned(standin: Standin, operator: Publisher) -> None:
    [node] = operator.json(*words(standin, "--node", "render-1"))["nodes"]
    with standin.locked():
        user_data = standin.instances.records[node["instance"]].user_data
    done = booted(operator, user_data)
    assert done.returncode == 0, done.stderr
    assert (operator.place / "machine/root/release/fleet/1/readme").read_text() == "a release"


def test_no_room_is_full(standin: Standin, operator: Publisher) -> None:
    standin.script.exhausted |= set(standin.site.zones)
    assert operator.json(*words(standin, "--node", "render-1"), code=22)["error"]["kind"] == "full"
    assert standin.resources() == []


ROLE = """
role = "own"
[values]
listen = "127.0.0.1:0"
[[process]]
name = "a"
run = ["true", "{listen}", "{must}"]
"""


@pytest.mark.parametrize(
    ("role", "more", "code", "says"),
    [
        ("render", ["--set", "nosuch=1"], 2, "role render has no value 'nosuch'"),
        ("render", ["--set", "listen=bad"], 2, "is an address"),
        ("own", [], 2, "{must} stands for nothing"),
        ("own", ["--set", "must=1", "--set", "nosuch=1"], 2, "role own has no value 'nosuch'"),
        ("other", [], 10, "release fleet@2 has no role other"),
        ("render", ["--release", "fleet@9"], 10, "there is no seq 9 of release fleet"),
        ("render", ["--seq", "covers=9"], 10, "covers has no seq 9"),
    ],
)
def test_what_no_instance_could_run_is_not_paid_for(
    standin: Standin, operator: Publisher, role: str, more: list[str], code: int, says: str
) -> None:
    publish_role(operator, "own", ROLE)
    _, _, *rest = words(standin, *more)
    assert says in operator.json("launch", role, *rest, code=code)["error"]["message"]
    assert standin.resources() == []


def test_an_upgrade_looks_at_what_new_instances_are_told_before_any_is_started(
    standin: Standin, operator: Publisher
) -> None:
    [node] = operator.json(*words(standin, "--node", "render-1", "--set", "dataset=covers"))["nodes"]
    subnets = [word for subnet in standin.instances.subnets for word in ("--subnet", subnet)]
    machine = ["--image", IMAGE, "--type", KIND, "--profile", "boxlink-node", *subnets]
    upgrade = ["upgrade", "render", "--allow-unsigned", *machine]
    for dry in ([], ["--dry-run"]):
        unknown = operator.json(*upgrade, "--set", "nosuch=1", *dry, code=2)["error"]
        assert "role render has no value 'nosuch'" in unknown["message"]
        assert "publish it with roles/render.toml in it" in unknown["hint"], "it is ours, not the release's"
    # A release whose own role has other values is believed.
    publish_role(operator, "render", ROLE.replace('"own"', '"render"'))
    lacking = operator.json(*upgrade, "--release", "fleet", "--dry-run", code=2)["error"]
    assert "role render has no value 'dataset'" in lacking["message"]
    publish_role(operator, "render", ROLE.replace('"own"', '"render"').replace("{listen}", "{dataset}"))
    assert "{must}" in operator.json(*upgrade, "--release", "fleet", code=2)["error"]["message"]
    # That role would do. What runs serves nothing here, and a dry run says so as well.
    for dry in ([], ["--dry-run"]):
        unready = operator.json(*upgrade, "--release", "fleet", "--set", "must=1", *dry, code=13)["error"]
        assert unready["message"].startswith("render-1 is not ready as it is: it has not registered")
    assert [resource.id for resource in standin.resources()] == [node["instance"]], "nothing was started"
    assert not list((operator.place / "store").glob("upgrade/*"))


def publish_role(operator: Publisher, name: str, text: str) -> None:
    release = operator.place.parent / "release"
    (release / "roles").mkdir(exist_ok=True)
    (release / f"roles/{name}.toml").write_text(text)
    operator.run("release", "publish", "fleet", release)
