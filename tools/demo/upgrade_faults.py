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
# In which so many requests must have been answered, once the upgrade is over.
_LOAD_S = 300.0
_ROLLED_BACK = 13
_RENDER = '["boxlink", "render"'


@dataclass
class Outcome:
    """Of one variant: requests, and what was wrong (nothing, where all is as it should be)."""

    name: str
    answered: int = 0
    failed: int = 0
    wrong: int = 0
    why: str = ""


def run_faults(upgrades: Upgrades, covers: Path, admin: str, requests: int) -> None:
    """All variants, also when one fails; then DemoError names those that did."""
    faults = _Faults(upgrades, covers, admin)
    variants: tuple[tuple[str, Callable[[], None]], ...] = (
        (f"the new ones begin {_SLOW_S} s late", faults.slow),
        ("the new ones crash at start", faults.crashing),
        ("the new ones are never ready", faults.never_ready),
        (f"the store is away for {_AWAY_S:.0f} s in the middle", faults.store_away),
    )
    outcomes = [_run(upgrades, name, variant, requests) for name, variant in variants]
    for one in outcomes:
        upgrades.demo.say(
            f"{one.name}: {one.answered:,} requests answered, {one.failed} failed, {one.wrong} with wrong bytes"
            + (f": {one.why}" if one.why else "")
        )
    bad = [one.name for one in outcomes if one.failed or one.wrong or one.why]
    if bad:
        raise DemoError(f"not as it should be: {'; '.join(bad)}")


def _run(upgrades: Upgrades, name: str, variant: Callable[[], None], requests: int) -> Outcome:
    upgrades.demo.say(f"{name}:")
    load = Load(upgrades.demo.port, upgrades.expected(), _CLIENTS)
    load.start()
    why = ""
    try:
        variant()
        deadline = time.monotonic() + _LOAD_S
        while load.answered < requests and not load.failed and time.monotonic() < deadline:
            time.sleep(0.1)
    except DemoError as error:
        why = str(error)
    finally:
        load.stop()
    if not why and load.answered < requests:
        why = f"only {load.answered:,} of {requests:,} requests were answered"
    return Outcome(name, load.answered, load.failed, load.wrong, why or load.first_failure)


class _Faults:
    def __init__(self, upgrades: Upgrades, covers: Path, admin: str) -> None:
        self._upgrades, self._covers, self._admin = upgrades, covers, admin

    def slow(self) -> None:
        program = boxlink_command()[0]
        late = f'["sh", "-c", "sleep {_SLOW_S}; exec {program} \\"$@\\"", "sh", "render"'
        self._roll_to_role(late)

    def crashing(self) -> None:
        self._roll_to_role('["false"', "--ready-within", "15", code=_ROLLED_BACK)

    def never_ready(self) -> None:
        """Something runs, and never registers."""
        self._roll_to_role('["sh", "-c", "exec sleep 1000", "sh", "render"', "--ready-within", "15", code=_ROLLED_BACK)

    def store_away(self) -> None:
        demo = self._upgrades.demo
        Image.new("RGB", (300, 450), (30, 30, 200)).save(self._covers / "another-new-cover.jpg")
        seq = demo.boxlink("publish", "covers", str(self._covers))["seq"]
        store, away = demo.place / "store", demo.place / "store-away"
        is_done = False

        def take_away(line: str) -> None:
            nonlocal is_done
            if "is ready" in line and not is_done:
                is_done = True
                store.rename(away)
                demo.say("    (the store is away)")
                time.sleep(_AWAY_S)
                away.rename(store)
                demo.say("    (the store is back)")

        self._upgrades.upgrade(self._admin, "--seq", f"covers={seq}", *self._upgrades.trust, on_line=take_away)
        if not is_done:
            raise DemoError("the store was never taken away: no new node got ready")

    def _roll_to_role(self, run: str, *words: str, code: int = 0) -> None:
        """To a release whose nodes begin their server with ``run``."""
        from tools.demo.upgrade import role_text

        role = role_text("20")
        assert _RENDER in role
        self._upgrades.publish_release(role.replace(_RENDER, run))
        self._upgrades.upgrade(self._admin, "--release", "fleet", *self._upgrades.trust, *words, code=code)
