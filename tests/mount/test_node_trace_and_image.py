"""What a node does by itself: traces of its start-ups alone; no process once all is here, also of a served image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.mounted import make_tree
from tests.mount.test_lazy_sync import Site

_HOOKS = """
import os, sys
from pathlib import Path
if any("boxlink" in word or "tools." in word for word in sys.orig_argv):
    from synclib.lazy import base_image, metadata
    metadata.WHOLE_IMAGE_BYTES = base_image._WHOLE_OBJECT_BYTES = 0
if "tools.mount_worker" in sys.orig_argv:
    from synclib.engine.startup import StartUp
    run = StartUp.run
    def told(self, *words):
        run(self, *words)
        (Path({place!r}) / f"over {{os.getpid()}}").touch()
    StartUp.run = told
"""


def _make_tree(top: Path) -> None:
    """Enough files that their image is kept in the store."""
    make_tree(top)
    for number in range(4200):
        (top / f"more {number % 30}").mkdir(exist_ok=True)
        (top / f"more {number % 30}/{number}").write_bytes(b"%d" % number)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr("tests.mount.test_lazy_sync.make_tree", _make_tree)
    found = Site(tmp_path)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOKS.format(place=os.fspath(hooks)))
    found.machine.environment["PYTHONPATH"] = f"{hooks}:{os.environ.get('PYTHONPATH', '')}"
    try:
        yield found
    finally:
        found.close()


def _traced(site: Site) -> list[int]:
    return [trace["seq"] for trace in site.machine.json("trace", "show", "covers")["traces"]]


def test_a_followed_seq_is_no_start_up(site: Site) -> None:
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    (site.covers / "00/000.jpg").read_bytes()
    _end_start_up(site, 1)
    assert _traced(site) == [1]
    for seq in (2, 3):
        (site.source / f"new {seq}").write_bytes(os.urandom(10_000))
        site.machine.run("publish", "covers", site.source)
        site.wait(lambda seq=seq: site.down()["seq"] == seq)  # type: ignore[misc]
        (site.covers / f"new {seq}").read_bytes()
        _end_start_up(site, seq)
    assert _traced(site) == [1]
    # After the machine's end there is one again.
    site.stop()
    site.kill_mounts()
    site.start()
    site.wait((site.covers / "00/001.jpg").exists)
    (site.covers / "00/001.jpg").read_bytes()
    _end_start_up(site, 3)
    assert _traced(site) == [1, 3]


def _end_start_up(site: Site, seq: int) -> None:
    """What a worker has noted is published by now, if it is to be."""
    site.machine.run("trace", "stop", site.covers)
    (worker,) = [row["worker"] for row in site.machine.json("status")["mounts"] if row["seq"] == seq]
    site.wait((site.machine.place / f"hooks/over {worker}").exists)


def test_a_node_goes_on_without_a_process_when_a_served_image_is_here(site: Site) -> None:
    assert "image" in [item["kind"] for item in site.machine.json("compact", "covers")["attachments"]]
    (site.source / "00/000.jpg").write_bytes(b"changed")
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.is_hydrating = True
    (site.covers / "synch.active").write_text("lazy")
    site.start()
    site.wait(lambda: site.down()["seq"] == 2)
    assert list((site.machine.place / "cache/boxlink").glob("*/lazy/*.patch")), "it is served beside the blob"
    site.wait(lambda: not site.keepers())
    (row,) = site.machine.json("status")["mounts"]
    assert (row["served"], row["state"], row["seq"]) == ("native", "serving", 2)
    site.assert_same()
    site.stop()
    site.kill_mounts()
    site.start()
    site.wait(lambda: site.down()["seq"] == 2)
    assert site.keepers() == []
    site.assert_same()
