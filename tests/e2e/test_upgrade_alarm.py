"""New nodes that get ready and then answer badly: what the proxy counts takes an upgrade back."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import ailing_render
from tests.e2e.test_upgrade import ROLE, Rolled, admin_of
from tests.fleet import Fleet, Load, Proxy, asks, drawn, until
from tests.pictures import small_wall
from tools.demo.program import boxlink_command

# What is wrong with a node's server is a value of its role, so that an old one that comes back is well again.
_RUN = '["boxlink", "render"'
_CHOICE = f"""["sh", "-c", '''
ails=$1; shift
test $ails = nothing && exec {boxlink_command()[0]} render "$@"
exec {sys.executable} {Path(ailing_render.__file__)} $ails "$@"
''', "sh", "{{ails}}\""""
ALARMS = {
    "errors": r"(\d+) of \d+ requests failed at the proxy",
    "slowness": r"the proxy waits (\d+) ms for the slowest hundredth, \d+ ms before",
}


@pytest.fixture
def rolled(fleet: Fleet) -> Iterator[Rolled]:
    rolled = Rolled(fleet)
    assert _RUN in ROLE
    rolled.role.write_text(ROLE.replace(_RUN, _CHOICE).replace("[values]", '[values]\nails = "nothing"'))
    try:
        yield rolled
    finally:
        rolled.close()


@pytest.mark.parametrize("ails", ["errors", "slowness"])
def test_it_is_taken_back_for(rolled: Rolled, ails: str) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    wall = str(proxy.get("/wall.json").json()["wall"])
    tiles = drawn(small_wall(10))
    # The proxy is watched until it sees something: nothing here depends on how fast that is.
    words = rolled.upgrade_words(admin_of(proxy), "--set", f"ails={ails}", "--bake", "100")
    with Load(proxy.port, asks(wall, tiles)) as load:
        load.wait(200)
        assert (load.failures, load.wrong) == ([], [])
        failed = rolled.boxlink(*words, code=13)["error"]
    seen = re.fullmatch(rf"render-000001 was taken back: {ALARMS[ails]}", failed["message"])
    assert seen is not None, failed["message"]
    if ails == "errors":
        assert 3 < int(seen[1]) <= len(load.failures), "what the proxy counted, clients saw"
        assert {text.partition(": ")[2].split()[0] for text in load.failures} == {"500"}
    else:
        assert int(seen[1]) >= 1000 * ailing_render.SLOW_S
        assert load.failures == []
    # The old nodes are back and alone, and all is well again.
    assert rolled.names() == ["render-1", "render-2"]
    until(lambda: sorted(_serving(proxy)) == ["render-1", "render-2"], "the proxy has the old ones and no other")
    with Load(proxy.port, asks(wall, tiles)) as load:
        load.wait(200)
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    journal = json.loads((fleet.store / "upgrade/render-000001").read_text())
    assert (journal["state"], journal["reason"]) == ("rolled back", failed["message"].partition(": ")[2])
    assert [step["phase"] for step in journal["steps"]] == ["undone", "undone"]


def test_one_that_fails_its_probe_is_not_ready_and_no_client_meets_it(rolled: Rolled) -> None:
    fleet = rolled.fleet
    fleet.publish(small_wall(10))
    proxy = rolled.serving(2)
    wall = str(proxy.get("/wall.json").json()["wall"])
    words = rolled.upgrade_words(admin_of(proxy), "--set", "ails=proof", "--ready-within", "8")
    with Load(proxy.port, asks(wall, drawn(small_wall(10)))) as load:
        load.wait(200)
        failed = rolled.boxlink(*words, code=13)["error"]
        load.wait(100)
    assert "was not ready within 8 s" in failed["message"]
    assert "/tiles/one does not answer: HTTP Error 500" in failed["message"]
    assert (load.failures, load.wrong, load.cut) == ([], [], [])
    assert rolled.names() == ["render-1", "render-2"]


def _serving(proxy: Proxy) -> list[str]:
    found = proxy.backends().values()
    return [backend["node"] for backend in found if backend["state"] == "active" and not backend["ejected"]]
