"""Kill -9 at every step of a fault, whatever the store is like: right bytes or an error, and then all is well again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mount.crash.conftest import Crashing
from tests.mount.crash.hooks import STEPS
from tests.mount.test_upgrade import wait

# How far a fault comes, by what the store is like.
REACHED = {
    "": STEPS,
    "slow": STEPS,
    "flipped": STEPS[:3],
    "wrong range": STEPS[:3],
    "truncated": STEPS[:2],
    "503": STEPS[:2],
    "stalled": STEPS[:2],
    "down": STEPS[:2],
}
_RIGHT = ("", "slow")
_EVERYWHERE = [(weather, step) for weather, steps in REACHED.items() for step in steps]
# Each of these needs another mount, so these are fewer: (weather, step, victims).
_LYING = [("flipped", "fetched"), ("down", "asked"), ("stalled", "asked")]
_WITH_KEEPER = [(weather, step, ("keeper", "worker")) for weather, step in [*(("", step) for step in STEPS), *_LYING]]
_WITH_KEEPER += [(weather, step, ("keeper",)) for weather, step in [("", "fetched"), *_LYING]]


@pytest.mark.parametrize(("weather", "step"), _EVERYWHERE)
def test_a_worker_that_is_killed(crashing: Crashing, weather: str, step: str) -> None:
    name, before = crashing.unread(), crashing.row()
    crashing.be(weather)
    crashing.hooks.kill(step, "worker")
    reader = crashing.start_reading(name)
    told = crashing.row()
    is_whole = crashing.finish(name, reader)
    assert crashing.hooks.has_killed(step)
    assert told["state"] in ("serving", "no answer")
    assert is_whole == (weather in _RIGHT)
    # It heals by itself, when what failed is no longer believed to fail.
    crashing.be("")
    wait(lambda: crashing.read(name))
    after = crashing.row()
    assert (after["state"], after["keeper"]) == ("serving", before["keeper"])
    assert after["worker"] != before["worker"]
    assert after["restarts"] == int(str(before["restarts"])) + 1


@pytest.mark.parametrize(("weather", "step", "victims"), _WITH_KEEPER)
def test_a_keeper_that_is_killed(crashing: Crashing, weather: str, step: str, victims: tuple[str, ...]) -> None:
    crashing.mend()
    name = crashing.unread()
    crashing.be(weather)
    crashing.hooks.kill(step, *victims)
    reader = crashing.start_reading(name)
    crashing.machine.json("status")
    is_whole = crashing.finish(name, reader)
    assert crashing.hooks.has_killed(step)
    if victims == ("keeper",):
        assert is_whole == (weather in _RIGHT)
    assert crashing.machine.json("status")["mounts"][0]["state"] == "dead"
    crashing.be("")
    crashing.mend()
    assert crashing.row()["state"] == "serving"
    wait(lambda: crashing.read(name))


@pytest.mark.parametrize("weather", ["503", "stalled", "truncated"])
def test_an_error_is_waited_for_once(crashing: Crashing, weather: str) -> None:
    """The kernel asks again for every page, some 70 of them."""
    crashing.mend()
    name, before = crashing.unread(), crashing.row()
    crashing.be(weather)
    assert not crashing.read(name)
    crashing.be("")
    after = crashing.row()
    assert int(str(after["errors"])) > int(str(before["errors"]))
    assert _gets(after) - _gets(before) < 40  # without what is believed: 146
    wait(lambda: crashing.read(name))


def _gets(row: dict[str, Any]) -> int:
    return int(row["requests"]["get"])


def test_in_the_end_everything_is_right(crashing: Crashing) -> None:
    crashing.mend()
    crashing.assert_all_right()
    row = crashing.row()
    assert row["damaged_chunks"] == 0
