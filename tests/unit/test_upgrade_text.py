"""What `boxlink upgrade` says of a rollout: from what to what, and the command line that goes on with it."""

from __future__ import annotations

import dataclasses
import shlex

import click

from synclib.core.rollout import NodeSpec, Phase, Rollout, Step
from tools.cli import upgrade
from tools.fleet.upgrade_asked import BAKE_S, READY_S, Asked
from tools.fleet.upgrade_plan import Change, check_same
from tools.fleet.upgrade_text import command_of, paused_text, would_text


def rollout(change: Change, *olds: NodeSpec, phases: tuple[Phase, ...] = ()) -> Rollout:
    steps = [
        Step(
            old=old,
            new=change.new_of(old) if change.swap else change.new_of(old).model_copy(update={"node": f"new-{number}"}),
            batch=number,
            phase=phases[number] if phases else Phase.WAITING,
        )
        for number, old in enumerate(olds)
    ]
    return Rollout(id="render-000002", role="render", swap=change.swap, steps=steps, at="")


A = NodeSpec(node="a", role="render", release="fleet@1", pins={"covers": 41}, values={"listen": "h:1"})
B = NodeSpec(node="b", role="render")


def test_a_plan_says_from_what_to_what_the_canary_first() -> None:
    change = Change.of("fleet@2", "covers=42", "snap-2", {"listen": "h:2"}, is_swap=False)
    assert would_text(rollout(change, A, B), "would be begun").splitlines() == [
        "a dry run, nothing is changed: render-000002 would be begun, 2 nodes in 2 batches",
        (
            "  batch 0, the canary: new-0 would take the place of a: release fleet@1 -> fleet@2, "
            "covers seq 41 -> seq 42, snapshot none -> snap-2, listen h:1 -> h:2"
        ),
        (
            "  batch 1: new-1 would take the place of b: release none -> fleet@2, "
            "covers its head -> seq 42, snapshot none -> snap-2, listen (as in the role) -> h:2"
        ),
    ]


def test_a_plan_of_a_swap() -> None:
    change = Change.of(None, "covers=42", "snap-2", {}, is_swap=True)
    said = would_text(rollout(change, A.model_copy(update={"snapshot": "snap-1"})), "would be begun")
    assert said.splitlines()[1:] == [
        "  batch 0, the canary: a would change: covers seq 41 -> seq 42, snapshot snap-1 -> snap-2"
    ]


def test_the_command_that_goes_on_is_of_the_same_change() -> None:
    """Parsed by the command's own parser it is a change that the journal takes for its own."""
    one = A.model_copy(update={"release": "fleet@2"})  # it needs the seq alone
    for change in (
        Change.of("fleet@2", None, "", {}, is_swap=False),
        Change.of(None, "covers=42", "", {}, is_swap=False),
        Change.of("fleet@2", "covers=42", "", {"listen": "h:2 3"}, is_swap=False),
        Change.of(None, "covers=42", "snap-2", {}, is_swap=False),
        Change.of(None, "covers=42", "snap-2", {}, is_swap=True),
    ):
        found = rollout(change, one, A, B)
        words = shlex.split(command_of(found, ["--local", "./the nodes"]))
        assert words[:2] == ["boxlink", "upgrade"]
        said = upgrade.command.make_context("upgrade", words[2:]).params
        assert (said["role"], str(said["local"])) == ("render", "the nodes")
        # A snapshot says the seq itself.
        seq = "covers=42" if said["snapshot"] else said["seq"]
        values = dict(word.split("=") for word in said["values"])
        again = Change.of(said["release"], seq, said["snapshot"] or "", values, is_swap=said["is_swap"])
        check_same(found, again)


def test_a_value_of_a_journal_makes_no_line_of_its_own() -> None:
    change = Change.of(None, None, "", {"listen": "h:2\nboxlink: all is done"}, is_swap=False)
    found = rollout(change, A, phases=(Phase.WAITING,))
    assert len(would_text(found, "would be begun").splitlines()) == 2
    assert len(paused_text(found, []).splitlines()) == 3


def test_where_a_paused_one_stands() -> None:
    change = Change.of(None, "covers=42", "", {}, is_swap=False)
    found = rollout(change, A, B, A, phases=(Phase.DONE, Phase.STARTING, Phase.WAITING))
    assert paused_text(found, ["--local", "nodes"]).splitlines() == [
        "1 of 3 nodes are done; at work: b (starting); not begun: a",
        "  the same command again goes on: boxlink upgrade render --local nodes --seq covers=42",
        "  all is taken back with: boxlink upgrade render --local nodes --abort",
    ]


def test_the_proxy_that_was_watched_is_watched_by_who_goes_on() -> None:
    found = rollout(Change.of(None, "covers=42", "", {}, is_swap=False), A).model_copy(update={"proxy": "h:9080"})
    words = {"local": None, "proxy_address": None, "trust": (), "is_unsigned_allowed": False, "driver_name": None}
    plain = {**words, "pool": None, "ready_s_max": READY_S, "bake_s": BAKE_S, "machine": (None, (), (), (), "")}
    other = {"role": "render", "release": None, "seq": None, "snapshot": None, "is_swap": False}
    asked = Asked(**{**plain, **other, "batch": 10, "values": (), "is_dry_run": False})  # type: ignore[arg-type]
    assert asked.words_for(found) == ["--proxy", "h:9080"]
    assert dataclasses.replace(asked, proxy_address="g:1").words_for(found) == ["--proxy", "g:1"]


def test_times_that_a_command_line_does_not_say() -> None:
    options = {option.name: option.default for option in upgrade.command.params if isinstance(option, click.Option)}
    assert (options["ready_within"], options["bake"]) == (READY_S, BAKE_S)
