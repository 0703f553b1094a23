"""Kill -9 at the steps of a fault on a disk without room: what is read is handed out all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.crash.conftest import Crashing
from tests.mount.test_mount_cache import fill
from tests.mount.test_upgrade import wait


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Iterator[Crashing]:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    place = tmp_path_factory.mktemp("full")
    cache, device = place / "cache", place / "device"
    cache.mkdir()
    with device.open("wb") as file:
        file.truncate(72 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    subprocess.run(["mount", "-o", "loop", device, cache], check=True)
    found = None
    try:
        found = Crashing(place)
        found.mount()
        assert found.read("001")
        fill(cache / "filler", leave=0)
        yield found
    finally:
        if found is not None:
            found.close()
        subprocess.run(["umount", "-l", cache], check=False)


@pytest.mark.parametrize("step", ["taken", "asked", "fetched", "verified", "answered"])
@pytest.mark.parametrize("weather", ["", "slow"])
def test_a_worker_that_is_killed(full: Crashing, step: str, weather: str) -> None:
    name, before = full.unread(), full.row()
    full.be(weather)
    full.hooks.kill(step, "worker")
    reader = full.start_reading(name)
    told = full.row()
    assert full.finish(name, reader)
    assert full.hooks.has_killed(step)
    assert told["state"] in ("serving", "no answer")
    full.be("")
    row = full.row()
    assert (row["state"], row["restarts"]) == ("serving", int(str(before["restarts"])) + 1)
    assert full.read(name)


def test_when_there_is_room_again_it_keeps_again(full: Crashing) -> None:
    full.assert_all_right()
    assert int(str(full.row()["unkept_chunks"])) > 0
    (Path(full.place) / "cache/filler").unlink()
    full.assert_all_right()
    before = full.row()
    full.assert_all_right()
    after = full.row()
    assert int(str(after["cache_bytes"])) > 20 << 20
    assert int(str(after["fetched_bytes"])) - int(str(before["fetched_bytes"])) < 1 << 20
    wait(lambda: full.row()["state"] == "serving")
