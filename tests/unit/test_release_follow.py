"""Which releases of a channel a node goes over to, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from synclib.core.registration import Channel
from synclib.errors import Invalid
from tools.fleet.release_follow import check_runs, decide


def channel(seq: int, *, frozen: bool = False, release: str | None = "fleet", dataset: str | None = None) -> Channel:
    return Channel(release=release, dataset=dataset, seq=seq, frozen=frozen, at="")


@pytest.mark.parametrize(
    ("seen", "taken", "says"),
    [
        (channel(8), 8, ""),
        (channel(7), None, ""),
        (channel(7, frozen=True), None, ""),
        (channel(8, frozen=True), None, "it is frozen, at seq 8"),
        (channel(6), None, "older than seq 7 that runs"),
        (channel(6, frozen=True), None, "frozen"),
        (channel(8, release="other"), None, "it is of release/other,"),
        (channel(8, release=None, dataset="fleet"), None, "it is of data/fleet,"),
    ],
)
def test_only_a_newer_one_of_a_channel_that_moves(seen: Channel, taken: int | None, says: str) -> None:
    found, why = decide(seen, "fleet", 7)
    assert found == taken
    assert says in why
    assert bool(says) == bool(why)


@pytest.mark.parametrize(("body", "says"), [("exit 0", ""), ("echo broken >&2; exit 3", "broken"), (None, "does not")])
def test_a_program_that_does_not_start_is_refused(tmp_path: Path, body: str | None, says: str) -> None:
    program = tmp_path / "venv/bin/boxlink"
    program.parent.mkdir(parents=True)
    program.write_text("no program" if body is None else f"#!/bin/sh\n{body}\n")
    program.chmod(0o755 if body is not None else 0o644)
    if not says:
        check_runs(tmp_path, ())
        return
    with pytest.raises(Invalid, match=says):
        check_runs(tmp_path, ())
