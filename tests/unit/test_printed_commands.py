"""Command lines that are printed, in hints above all, are such that the real parser takes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from synclib.engine.release import release_command
from tools.cli import boxlink, verbs

ROOT = Path(__file__).parents[2]
# From "boxlink VERB" to where a sentence goes on for certain.
_COMMAND = re.compile(rf"boxlink (?:{'|'.join(verbs())})(?![\w-])[^,;:()|>&?]*")
# What follows a command in our hints: a word of these is none of its arguments.
_PROSE = re.compile(
    r" (?:and|or|again|all|allows|brings|clears|finishes|lists|makes|names|need|needs|rolls|says|shows|starts|"
    r"takes|tells|then|to|was|which|with|writes)\b.*"
)


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Strings of a module but for its docstrings; what is filled in is 1, which may be a name, a path and a number."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in parts or id(node) in told:
            continue
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(each.value) if isinstance(each, ast.Constant) else "1" for each in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def printed() -> Iterator[tuple[str, str]]:
    """Where it is, and a command line with what may be prose behind it."""
    for package in ("synclib", "render", "proxy", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ROOT / "tools/bench" in path.parents:
                continue  # measures, and tells nobody what to do
            for line, text in texts(ast.parse(path.read_text())):
                for found in _COMMAND.findall(text):
                    yield f"{path.relative_to(ROOT)}:{line}", _PROSE.sub("", found)


def why_not(text: str) -> str:
    """Why the parser takes no beginning of it that has all of its options; empty where it takes one."""
    words = [word.strip("`.'\"") for word in text.split()][1:]
    options = [number for number, word in enumerate(words) if word.startswith("-")]
    shortest = options[-1] + 1 if options else 1
    whys = []
    for count in range(len(words), shortest - 1, -1):
        whys.append(refused([re.sub(r"\b(SEQ|S)\b", "1", word) for word in words[:count]]))
        if not whys[-1]:
            return ""
    return whys[0]


def refused(words: list[str]) -> str:
    """Why the real parser does not take a command line; nothing is run."""
    command: click.Command = boxlink
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0]) if words else None
        if found is None:
            return f"{command.name} has no {words[:1]}"
        command, words = found, words[1:]
    try:
        command.make_context(command.name, list(words))
    except click.UsageError as error:
        return error.format_message()
    return ""


def test_what_is_printed_is_parsed() -> None:
    found = list(printed())
    assert len(found) > 60
    assert {f"{where}: {text}: {why}" for where, text in found if (why := why_not(text))} == set()


@pytest.mark.parametrize(
    "text",
    [
        "boxlink log",
        "boxlink release rollback",
        "boxlink release no fleet",
        "boxlink release fetch",
        "boxlink log covers --nosuch tells",
        "boxlink tag",
    ],
)
def test_what_is_wrong_is_found(text: str) -> None:
    assert why_not(text)


@pytest.mark.parametrize("verb", ["fetch", "activate", "ls", "rollback", "prune"])
def test_commands_of_a_release(verb: str) -> None:
    place = Path("/opt/the box/fleet")
    for seq in (None, 7) if verb in ("fetch", "activate") else (None,):
        words = shlex.split(release_command(verb, place, seq))
        assert refused(words[1:]) == ""
        assert words[-2:] == ["--into", "/opt/the box"]
