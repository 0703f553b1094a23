"""What a command line or a settings file may not hold is said as what it is, before anything is done."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from synclib.core.role import ROLE_BYTES_MAX, parse_role
from synclib.errors import Corrupt, Invalid
from tools.cli import proxy, release, render, sync, upgrade
from tools.cli_context import Context, Finite
from tools.fleet.find_role import parse_values
from tools.fleet.local_nodes import Wish, check_wish, nodes
from tools.fleet.node_file import LocalNode, read_node, write_node

DEEP = b"a = " + b"[" * 3000


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "-1", "x"])
def test_no_number_of_seconds(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Finite(0).convert(text, None, None)
    assert Finite(0).convert("1.5", None, None) == 1.5


def test_every_option_that_takes_a_time_is_such() -> None:
    groups = [proxy.command, release.command, render.command, sync.command, upgrade.command]
    commands = [
        one for group in groups for one in (group.commands.values() if isinstance(group, click.Group) else [group])
    ]
    numbers = [
        option.type
        for command in commands
        for option in command.params
        if isinstance(option.type, click.types.FloatParamType)
    ]
    assert len(numbers) >= 7
    assert all(isinstance(one, Finite) for one in numbers)


def test_a_deep_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(DEEP) < ROLE_BYTES_MAX
    with pytest.raises(Invalid, match="too deeply"):
        parse_role(DEEP, "role.toml")
    (tmp_path / "boxlink.toml").write_bytes(DEEP)
    monkeypatch.setenv("BOXLINK_CONFIG", str(tmp_path / "boxlink.toml"))
    with pytest.raises(Invalid, match="too deeply"):
        _ = Context().settings


def test_the_costs_of_every_store_that_was_opened(tmp_path: Path) -> None:
    context = Context(store_url=f"file://{tmp_path}/store")
    (tmp_path / "store").mkdir()
    context.open_store().put("a", b"123")
    context.open_store().put("b", b"45")
    costs = context.with_costs({})
    assert costs["requests"] == {"get": 0, "put": 2, "list": 0, "delete": 0}
    assert costs["bytes_up"] == 5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"nosuch": "1"}, "has no value 'nosuch'"),
        ({"listen": "bad"}, "is an address"),
        ({"dataset": "x" * 70_000}, "at most"),
        ({"dataset": "\x01" * 10_000}, "at most"),
    ],
)
def test_values_that_no_node_can_be_started_with(tmp_path: Path, values: dict[str, str], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        check_wish(tmp_path / "n1", Wish("render", values=values))
    check_wish(tmp_path / "n1", Wish("render", values={"dataset": "covers", "listen": "127.0.0.1:1"}))


def test_a_value_that_is_no_text() -> None:
    with pytest.raises(Invalid, match="no text"):
        parse_values(["dataset=\udcff"])
    assert parse_values(["dataset=ü", "x="]) == {"dataset": "ü", "x": ""}


def test_a_node_file_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    node = LocalNode(node="n1", role="render", at="", directory=tmp_path)
    write_node(node)
    with pytest.raises(Invalid, match="too much"):
        write_node(node.model_copy(update={"values": {"x": "y" * 70_000}}))
    assert read_node(tmp_path) == node


def test_a_node_file_that_is_damaged_stops_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("n1", "n2", "n3"):
        (tmp_path / name).mkdir()
        write_node(LocalNode(node=name, role="render", at="", directory=tmp_path / name))
    (tmp_path / "n2/node.json").write_bytes(b"x" * 70_000)
    assert [node.node for node in nodes(tmp_path)] == ["n1", "n3"]
    assert [node.node for node in nodes(tmp_path)] == ["n1", "n3"]
    said = capsys.readouterr().err
    assert said.count("it is passed over") == 1
    assert str(tmp_path / "n2/node.json") in said
    with pytest.raises(Corrupt):
        read_node(tmp_path / "n2")


PROCESS = '[[process]]\nname = "a"\nrun = ["x"]\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PROCESS, "role is missing"),
        ('role = "r"', "process is missing"),
        ('rol = "r"\n' + PROCESS, "role is missing; there is no rol; the file has role, release_channel,"),
        ('role = "r"\n' + PROCESS + "runn = 1", "there is no process.0.runn; each [[process]] has name, run,"),
        ('role = "r"\n[process]\nenvironment = {A = "hunter2"}', "process is a table, it has to be a list in brackets"),
        ('role = "r"\n' + PROCESS + "environment = {A = 5}", "process.0.environment.A is another thing, it has to be"),
        (
            'role = "r"\n' + PROCESS + "environment = ['hunter2']",
            "process.0.environment is a list, it has to be a",
        ),
        ("role = '" + "R" * 90 + "'\n" + PROCESS, "role is '" + "R" * 79 + "…, it has to be of the form"),
        ('role = "r"\n' + PROCESS + "stop_s = 0", "process.0.stop_s is 0, it has to be more than 0"),
        ('role = "r"\n' + PROCESS + PROCESS, "two processes have one name"),
        ('role = "R"\n' + PROCESS, "role is 'R', it has to be of the form ^[a-z0-9]"),
        ('role = "r"\n' + PROCESS.replace('["x"]', '"x"'), "process.0.run is 'x', it has to be a list in brackets"),
        ('role = "r"\n' + PROCESS + "environment = 1", "process.0.environment is 1, it has to be a table"),
        ('role = "r"\nvalues = 1\n' + PROCESS, "values is 1, it has to be a table"),
    ],
)
def test_what_is_wrong_in_a_role_is_said_in_words(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_role(text.encode(), "role.toml")
    assert caught.value.message.startswith(says)
    assert caught.value.path == "role.toml"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["stop_s = " + "9" * 5000, "a = 1\u0000", "a = 1e9999999"])
def test_numbers_that_python_refuses(text: str) -> None:
    with pytest.raises(Invalid):
        parse_role(('role = "r"\n' + PROCESS + text).encode(), "role.toml")
