"""`boxlink render` where no file of the dataset stands: for one who may mount nothing, by the in-process reader."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import until
from tests.reader_site import ReaderSite


class Site(ReaderSite):
    def __init__(self, place: Path) -> None:
        super().__init__(place, 60)
        self.start_render()

    def close(self) -> None:
        for process in (self.render, self.daemon):
            if process is not None:
                process.kill()
                process.communicate()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with contextlib.closing(Site(tmp_path)) as found:
        yield found


def mode_of(marker: Path) -> str | None:
    """None while there is none: it is taken away before what stands here changes."""
    try:
        return str(json.loads(marker.read_text())["mode"])
    except FileNotFoundError:
        return None


def test_tiles_of_a_dataset_of_which_no_file_stands_here(site: Site) -> None:
    port = site.ready_port()
    down = json.loads((site.data / "covers/synch.down").read_text())
    assert (down["mode"], down["seq"]) == ("reader", 1)
    site.assert_same_tiles(port)
    assert not os.path.ismount(site.data / "covers")
    assert {path.name for path in (site.data / "covers").iterdir()} <= {"synch.active", "synch.down"}
    # A new seq is shown as it comes.
    site.write(70)
    site.machine.run("publish", "covers", site.source)
    assert site.wait_event("wall")["seq"] == 2
    site.assert_same_tiles(port)
    assert json.loads((site.data / "covers/synch.down").read_text())["seq"] == 2


def test_who_asks_for_files_afterwards_gets_them(site: Site) -> None:
    site.wait_event("ready")
    (site.data / "covers/synch.active").write_text("eager")
    until(lambda: mode_of(site.data / "covers/synch.down") == "eager", "the files stand here")
    for path in site.source.rglob("*.jpg"):
        assert (site.data / "covers" / path.relative_to(site.source)).read_bytes() == path.read_bytes()
