"""Rolling upgrades in which something goes wrong, each under a load that is counted: ``make demo-upgrade
ARGS=--faults``.

Two are to end well all the same, and two are to be taken back; none may lose a request or answer with other bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tools.demo.load import Load
from tools.demo.processes import DemoError
from tools.demo.program import boxlink_command

if TYPE_CHECKING:
    from tools.demo.upgrade import Upgrades

_AWAY_S = 10.0
_SLOW_S = 8
_CLIENTS = 6
# How often one is rolled until so many requests were answered meanwhile.
_ROLLS_MAX = 12
_ROLLED_BACK = 13
_RENDER = '["boxlink", "render"'


@dataclass
class Outcome:
    """Of one variant: requests while ``boxlink upgrade`` ran, and what was wrong (nothing, where all is as it should
    be)."""

    name: str
    rolls: int = 0
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    why: str = ""


def run_faults(upgrades: Upgrades, covers: Path, admin: str, requests: int) -> None:
    """All variants, also when one fails; then DemoError names those that did."""
    faults = _Faults(upgrades, covers, admin)
    variants: tuple[tuple[str, Callable[[Load], int]], ...] = (
        (f"the new ones begin {_SLOW_S} s late", faults.slow),
        ("the new ones crash at start", faults.crashing),
        ("the new ones are never ready", faults.never_ready),
        (f"the store is away for {_AWAY_S:.0f} s in the middle", faults.store_away),
    )
    outcomes = [_run(upgrades, name, variant, requests) for name, variant in variants]
    for one in outcomes:
        upgrades.demo.say(
            f"{one.name}, {one.rolls} times: {one.answered:,} requests answered meanwhile, {one.failed} failed, "
            f"{one.wrong} with wrong bytes" + (f": {one.why}" if one.why else "")
        )
    bad = [one.name for one in outcomes if one.failed or one.wrong or one.why]
    if bad:
        raise DemoError(f"not as it should be: {'; '.join(bad)}")


def _run(upgrades: Upgrades, name: str, variant: Callable[[Load], int], requests: int) -> Outcome:
    upgrades.demo.say(f"{name}:")
    load = Load(upgrades.demo.port, upgrades.expected(), _CLIENTS)
    one = Outcome(name)
    load.start()
    try:
        while one.answered < requests and one.rolls < _ROLLS_MAX and not load.failed:
            one.answered += variant(load)
            one.rolls += 1
    except DemoError as error:
        one.why = str(error)
    finally:
        load.stop()
    if not one.why and one.answered < requests:
        one.why = f"only {one.answered:,} of {requests:,} requests were answered"
    one.failed, one.wrong, one.why = load.failed, load.wrong, one.why or load.first_failure
    return one


class _Faults:
    """Each rolls the nodes once, and tells how many requests were answered while `boxlink upgrade` ran."""

    def __init__(self, upgrades: Upgrades, covers: Path, admin: str) -> None:
        self._upgrades, self._covers, self._admin = upgrades, covers, admin
        self._rolls = 0

    def slow(self, load: Load) -> int:
        program = boxlink_command()[0]
        late = f'["sh", "-c", "sleep {_SLOW_S}; exec {program} \\"$@\\"", "sh", "render"'
        return self._roll_to_role(load, late)

    def crashing(self, load: Load) -> int:
        return self._roll_to_role(load, '["false"', "--ready-within", "15", code=_ROLLED_BACK)

    def never_ready(self, load: Load) -> int:
        """Something runs, and never registers."""
        run = '["sh", "-c", "exec sleep 1000", "sh", "render"'
        return self._roll_to_role(load, run, "--ready-within", "15", code=_ROLLED_BACK)

    def store_away(self, load: Load) -> int:
        self._rolls += 1
        demo = self._upgrades.demo
        colour = (30, 30, 100 + self._rolls)
        Image.new("RGB", (300, 450), colour).save(self._covers / f"another-new-cover-{self._rolls}.jpg")
        seq = demo.boxlink("publish", "covers", str(self._covers))["seq"]
        store, away = demo.place / "store", demo.place / "store-away"
        is_done = False
        expect = self._upgrades.expecting(load)

        def take_away(line: str) -> None:
            nonlocal is_done
            if "is ready" in line and not is_done:
                is_done = True
                store.rename(away)
                demo.say("    (the store is away)")
                time.sleep(_AWAY_S)
                away.rename(store)
                demo.say("    (the store is back)")
            expect(line)

        before = load.answered
        self._upgrades.upgrade(self._admin, "--seq", f"covers={seq}", *self._upgrades.trust, on_line=take_away)
        if not is_done:
            raise DemoError("the store was never taken away: no new node got ready")
        return load.answered - before

    def _roll_to_role(self, load: Load, run: str, *words: str, code: int = 0) -> int:
        """To a release whose nodes begin their server with ``run``."""
        from tools.demo.upgrade import role_text

        self._rolls += 1
        role = role_text(str(20 + self._rolls % 10))  # another one each time
        assert _RENDER in role
        self._upgrades.publish_release(role.replace(_RENDER, run))
        before = load.answered
        self._upgrades.upgrade(self._admin, "--release", "fleet", *self._upgrades.trust, *words, code=code)
        return load.answered - before
