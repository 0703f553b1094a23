"""A store that was prepared, and was then moved to a server that ignores conditional writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.store.file import FileStore
from tests.e2e.boxlink_process import Machine
from tools.bench.far_process import environment, serving
from tools.bench.far_server import URL, FarServer


class Site:
    """A store prepared by another machine, served over S3's protocol, and a publisher that has never seen it."""

    def __init__(self, place: Path) -> None:
        self.source = place / "covers"
        self.source.mkdir()
        (self.source / "a").write_text("a")
        Machine(place).run("init")
        self.store = FileStore(str(place / "store"), SystemClock(), SystemEntropy())
        self.server = FarServer(self.store)
        self.machine = Machine(place, URL)

    def left(self) -> list[str]:
        return [info.key for info in self.store.list("") if info.key != "boxlink.json"]

    def probes(self) -> int:
        """How often an intent was put that is not for a first publish, which takes one of its own."""
        own = sum(asked.what == "PUT data/covers/head" for asked in self.server.asked) > 0
        return sum(asked.what.startswith("PUT data/covers/intent/") for asked in self.server.asked) - own


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    with serving(found.server) as endpoint:
        found.machine.environment.update(environment(endpoint))
        yield found


def test_nothing_is_published_to_a_server_that_ignores_conditions(site: Site, tmp_path: Path) -> None:
    site.server.honours_conditions = False
    error = site.machine.json("publish", "covers", site.source, code=21)["error"]
    assert "does not honour conditional writes" in error["message"]
    assert site.left() == []
    near = Machine(tmp_path / "near")
    near.place.mkdir()
    near.run("init")
    near.run("publish", "covers", site.source)
    site.machine.store = near.store
    site.machine.environment["BOXLINK_STORE"] = near.store
    error = site.machine.json("replicate", URL, "covers", code=21)["error"]
    assert "does not honour conditional writes" in error["message"]
    assert site.left() == []


def test_one_that_honours_them_is_asked_once_a_day(site: Site) -> None:
    site.machine.run("publish", "covers", site.source, "--dry-run")
    assert site.probes() == 0
    site.machine.run("publish", "covers", site.source)
    asked = site.probes()
    assert asked == 3  # a create, one that is refused, a replacement that is refused
    (site.source / "b").write_text("b")
    site.machine.run("publish", "covers", site.source)
    assert site.probes() == asked
    for note in (site.machine.place / "state/boxlink/conditions").iterdir():
        os.utime(note, (0, 0))
    (site.source / "c").write_text("c")
    site.machine.run("publish", "covers", site.source)
    assert site.probes() == 2 * asked
    assert not [key for key in site.left() if "/intent/" in key]


def test_who_prepares_it_has_asked(site: Site) -> None:
    site.machine.run("init")
    site.machine.run("publish", "covers", site.source)
    assert site.probes() == 0
