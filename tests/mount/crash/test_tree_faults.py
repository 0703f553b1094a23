"""As test_faults.py for a FUSE tree: fewer cases, for what fetches, verifies and keeps is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mount.crash.conftest import Crashing
from tests.mount.crash.hooks import STEPS
from tests.mount.test_upgrade import wait

_CASES = [("", step) for step in STEPS] + [("slow", "fetched"), ("flipped", "fetched"), ("stalled", "asked")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, mount_trouble: str) -> Iterator[Crashing]:
    if mount_trouble:
        pytest.skip(f"real mounts: {mount_trouble}")
    found = Crashing(tmp_path_factory.mktemp("tree"))
    try:
        found.mount("--mode", "fuse")
        yield found
    finally:
        found.close()


@pytest.mark.parametrize(("weather", "step"), _CASES)
def test_a_worker_that_is_killed(tree: Crashing, weather: str, step: str) -> None:
    name, before = tree.unread(), tree.row()
    tree.be(weather)
    tree.hooks.kill(step, "worker")
    reader = tree.start_reading(name)
    tree.machine.json("status")
    is_whole = tree.finish(name, reader)
    assert tree.hooks.has_killed(step)
    assert is_whole == (weather in ("", "slow"))
    tree.be("")
    wait(lambda: tree.read(name))
    after = tree.row()
    assert (after["state"], after["restarts"]) == ("serving", int(str(before["restarts"])) + 1)


def test_in_the_end_everything_is_right(tree: Crashing) -> None:
    tree.assert_all_right()
    assert tree.row()["damaged_chunks"] == 0
