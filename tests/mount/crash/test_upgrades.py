"""Kill -9 amid an upgrade in place while the store is away or lies: right bytes or an error, and then all is well."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.boxlink_process import end_session
from tests.mount.crash.conftest import Crashing
from tests.mount.test_upgrade import wait, workers

_STEPS = ("starting", "retiring")
_CASES = [
    (weather, step, victim) for weather in ("slow", "down", "flipped") for step in _STEPS for victim in ("old", "new")
]
_CASES += [("stalled", step, "none") for step in _STEPS] + [("down", step, "keeper") for step in _STEPS]


@pytest.mark.parametrize(("weather", "step", "victim"), _CASES)
def test_an_upgrade(crashing: Crashing, weather: str, step: str, victim: str) -> None:
    crashing.mend()
    name, before = crashing.unread(), crashing.row()
    old = int(str(before["worker"]))
    with crashing.hooks.held(step):
        upgrade = crashing.machine.start("remount", crashing.target)
        try:
            crashing.hooks.wait(step)
            crashing.be(weather)
            reader = crashing.start_reading(name)
            for worker in workers(crashing):
                if victim in ("old", "new") and (worker == old) == (victim == "old"):
                    os.kill(worker, signal.SIGKILL)
            if victim == "keeper":
                os.kill(int(str(before["keeper"])), signal.SIGKILL)
            crashing.machine.json("status")
        except BaseException:
            end_session(upgrade)
            raise
    try:
        is_whole = crashing.finish(name, reader)
        crashing.be("")
        upgrade.communicate(timeout=120)
        assert upgrade.returncode in ((11,) if victim == "keeper" else (0, 11))
    finally:
        end_session(upgrade)
    if weather == "slow":
        assert is_whole
    elif victim != "keeper":
        assert not is_whole
    crashing.mend()
    wait(lambda: len(workers(crashing)) == 1)
    wait(lambda: crashing.read(name))
    assert crashing.row()["state"] == "serving"
    if upgrade.returncode == 0:
        assert workers(crashing) != {old}
