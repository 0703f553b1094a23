"""A node's cache is deleted, in whole or in part, while something stands on it: it comes back, or says why not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.test_from_snapshot import SnapshotSite
from tests.mount.test_lazy_sync import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path)
    try:
        yield found
    finally:
        found.close()


def start_mounted(site: Site, words: str = "lazy") -> None:
    (site.covers / "synch.active").write_text(words)
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()


def cache(site: Site) -> Path:
    return site.machine.place / "cache/boxlink"


def start_machine_again(site: Site, lost: str = "*") -> None:
    """With what matches gone from the cache."""
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    gone = list(cache(site).glob(lost))
    assert gone
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    site.start()


def error(site: Site) -> str:
    try:
        found = json.loads((site.covers / "synch.error").read_text())
    except (OSError, ValueError):
        return ""
    return str(found["message"])


@pytest.mark.parametrize("lost", ["*", "*/lazy/*.image", "*/lazy/*.map"])
def test_it_stands_again_after_a_start_of_the_machine(site: Site, lost: str) -> None:
    start_mounted(site)
    start_machine_again(site, lost)
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()


def test_what_a_power_cut_left_empty_is_made_again(site: Site) -> None:
    start_mounted(site)
    site.stop(signal.SIGKILL)
    site.kill_mounts()
    (image,) = cache(site).glob("*/lazy/*.image")
    os.truncate(image, 0)
    site.start()
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()


def test_what_nobody_follows_any_more_comes_back_too(site: Site) -> None:
    start_mounted(site)
    (site.covers / "synch.active").unlink()
    site.wait(lambda: "not followed" in site.down()["reason"])
    start_machine_again(site)
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()


def test_without_the_store_it_says_so_and_tries_again(site: Site) -> None:
    start_mounted(site)
    store = site.machine.place / "store"
    shutil.move(store, site.machine.place / "away")
    start_machine_again(site)
    site.wait(lambda: error(site) != "")
    assert "None" not in error(site)
    assert "worker" not in error(site), "nothing was started that could not serve"
    assert site.keepers() == []
    shutil.move(site.machine.place / "away", store)
    site.wait(lambda: site.down()["seq"] == 1)
    site.assert_same()
    site.wait(lambda: error(site) == "")


def test_a_newer_seq_comes_through_where_the_old_one_is_gone_for_good(site: Site) -> None:
    start_mounted(site)
    site.stop(signal.SIGKILL)
    runs = site.machine.place / "store/data/covers/run"
    former = set(runs.glob("*/*"))
    (site.source / "more").write_bytes(b"more")
    site.machine.run("publish", "covers", site.source)
    site.machine.run("compact", "covers", "--full")
    for path in former:
        path.unlink()
    start_machine_again(site)
    site.wait(lambda: site.down()["seq"] == 2)
    site.assert_same()


def test_a_worker_that_is_killed_is_followed_by_one_that_makes_the_cache_again(site: Site) -> None:
    start_mounted(site)
    keepers = site.keepers()
    shutil.rmtree(cache(site))
    found = subprocess.run(
        ["pgrep", "-f", f"tools.mount_worker {site.machine.place}"], capture_output=True, text=True, check=True
    )
    (worker,) = map(int, found.stdout.split())
    os.kill(worker, signal.SIGKILL)
    Path("/proc/sys/vm/drop_caches").write_text("1")
    site.assert_same()
    assert site.keepers() == keepers, "it is the same mount"
    assert error(site) == ""


def test_the_map_of_a_volume_is_copied_again(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("volumes are attached by root alone")
    site = SnapshotSite(tmp_path / "site", tmp_path / "pool")
    try:
        start_mounted(site, "from=snapshot")
        start_machine_again(site)
        site.wait(lambda: site.down()["seq"] == 1)
        site.hide_packs()
        site.assert_same()
        assert site.figures()["volume_bytes"] > 0
        assert len(site.driver.volumes()) == 1
    finally:
        site.close()
