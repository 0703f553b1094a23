"""A follower of a channel over a real store and real programs, on a clock of the test's own: what is refused is tried
less and less often and said once, and what is to run is handed over."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from synclib.clock import ManualClock, SeededEntropy
from synclib.core.registration import Channel
from synclib.engine.channels import move_channel
from synclib.engine.host import Host
from tests.engine.test_release import TRUST, Site
from tools.bootstrap.links import CURRENT, NEXT, linked_seq
from tools.fleet.release_follow import Following, ReleaseFollower
from tools.fleet.release_place import activate
from tools.fleet.release_refused import refuse, refused

POLL_S = 10.0
ROLE = 'role = "echo"\n[[process]]\nname = "a"\nrun = ["sleep", "1"]\n'


class Ended(Exception):
    """The follower has looked as often as it was to."""


class Ticks(ManualClock):
    """Ends whoever sleeps past a moment."""

    until = 0.0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.monotonic() > self.until:
            raise Ended


class Rig:
    """Seq 1 runs, the channel names seq 2. ``trials``: how often a program of a release was run."""

    def __init__(self, place: Path) -> None:
        self.site = Site(place)
        self.clock = Ticks()
        self.said: list[str] = []
        self.trials = 0
        self.publish(ROLE)
        self.site.fetch()
        activate("fleet", 1, self.site.into, TRUST)

    def publish(self, role: str) -> None:
        (self.site.source / "roles/echo.toml").write_text(role)
        self.site.change(str(self.clock.monotonic()) + role)
        seq = self.site.publish().statement.seq
        move_channel(
            self.site.store, self.site.host(), "stable", Channel(release="fleet", seq=seq, at=""), is_back_allowed=False
        )

    def follower(self, *, spread_s: float = 0.0, is_tried: bool = True) -> ReleaseFollower:
        trial = ("echo", "--data", str(self.site.place / "data")) if is_tried else ()
        following = Following("fleet", "stable", 1, self.site.into, POLL_S, spread_s, trial)
        host = Host("n1", self.clock, SeededEntropy(1), self.site.place / "state", self.site.place / "cache")
        return ReleaseFollower(following, self.site.store, None, host, TRUST, self.said.append)

    def run(self, follower: ReleaseFollower, seconds: float) -> int | None:
        """What it hands over within so many seconds."""
        self.clock.until = self.clock.monotonic() + seconds
        try:
            return follower.run()
        except Ended:
            return None


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    rig = Rig(tmp_path)
    real = subprocess.run

    def run(command: Any, **options: Any) -> Any:
        rig.trials += 1
        return real(command, **options)

    monkeypatch.setattr("tools.fleet.release_follow.subprocess.run", run)
    return rig


def test_what_does_not_run_is_tried_less_and_less_often_and_said_once(rig: Rig) -> None:
    rig.publish("no role")
    follower = rig.follower()
    assert rig.run(follower, 5 * POLL_S) is None
    assert rig.trials == 1
    assert [text for text in rig.said if "does not run here" in text] == rig.said
    assert len(rig.said) == 1
    assert rig.run(follower, 2 * POLL_S) is None
    assert rig.trials == 2
    assert rig.run(follower, 10 * POLL_S) is None
    assert rig.trials == 2, "twice as long"
    assert len(rig.said) == 1
    rig.publish(ROLE)
    assert rig.run(follower, 2 * POLL_S) == 3, "another one is tried at once"


def test_the_hint_is_said(rig: Rig) -> None:
    rig.publish(ROLE)
    (rig.site.fetch().directory / "roles/more.toml").write_text(ROLE)
    assert rig.run(rig.follower(), 3 * POLL_S) is None
    assert len(rig.said) == 1
    assert rig.said[0].startswith(f"corrupt: {rig.site.here}/2/roles/more.toml: it is not as it was signed")
    assert "brings it anew, once this directory is moved away" in rig.said[0]
    assert rig.trials == 0, "nothing of it was run"


def test_it_is_tried_once_while_its_turn_is_waited_for(rig: Rig) -> None:
    rig.publish(ROLE)
    follower = rig.follower(spread_s=100 * POLL_S)
    assert rig.run(follower, 5 * POLL_S) is None
    assert rig.trials == 1
    assert rig.run(follower, 100 * POLL_S) == 2
    assert rig.trials == 1
    assert len(rig.said) == 1


def test_what_up_is_to_try_is_not_current_yet(rig: Rig) -> None:
    rig.publish(ROLE)
    assert rig.run(rig.follower(), POLL_S) == 2
    assert (linked_seq(rig.site.here, CURRENT), linked_seq(rig.site.here, NEXT)) == (1, 2)


def test_without_an_up_it_is_activated(rig: Rig) -> None:
    rig.publish(ROLE)
    assert rig.run(rig.follower(is_tried=False), POLL_S) == 2
    assert linked_seq(rig.site.here, CURRENT) == 2


def test_what_did_not_live_is_not_taken_until_the_channel_names_another(rig: Rig) -> None:
    rig.publish(ROLE)
    refuse(rig.site.here, 2, "its boxlink up ended at once")
    assert rig.run(rig.follower(), 5 * POLL_S) is None
    assert rig.trials == 0
    assert len(rig.said) == 1
    assert "its boxlink up ended at once" in rig.said[0]
    rig.publish(ROLE + "# mended\n")
    assert rig.run(rig.follower(), POLL_S) == 3
    assert refused(rig.site.here) is None


def test_an_operator_takes_it_all_the_same(rig: Rig) -> None:
    rig.publish(ROLE)
    rig.site.fetch()
    refuse(rig.site.here, 2, "its boxlink up ended at once")
    activate("fleet", 2, rig.site.into, TRUST)
    assert refused(rig.site.here) is None
