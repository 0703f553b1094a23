"""A worker that never comes to life: the keeper gives its readers an error when its deadline is over."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.mounted import Mounted
from tests.mount.test_upgrade import wait

_HOOKS = """
import sys
from pathlib import Path
if "tools.mount_keeper" in sys.orig_argv:
    from synclib.lazy import keeper
    start = keeper.Keeper._start_worker
    def start_soon(self, *, is_successor, **words):
        if is_successor:
            keeper.DEADLINE_S = {deadline_s!r}
        start(self, is_successor=is_successor, **words)
    keeper.Keeper._start_worker = start_soon
if "tools.mount_worker" in sys.orig_argv and Path({broken!r}).exists():
    with open({broken!r}, "a") as log:
        log.write("x")
    raise SystemExit(1)
"""


@pytest.mark.parametrize("is_guarded", [True, False], ids=["guarded", "guard removed"])
def test_readers_get_an_error_when_no_worker_comes(mounted: Mounted, tmp_path: Path, is_guarded: bool) -> None:
    hooks, broken = tmp_path / "hooks", tmp_path / "broken"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        _HOOKS.format(deadline_s=2.0 if is_guarded else 1e6, broken=os.fspath(broken))
    )
    mounted.machine.environment["PYTHONPATH"] = f"{hooks}:{os.environ.get('PYTHONPATH', '')}"
    keeper = mounted.mount()["keeper"]
    assert isinstance(keeper, int)
    broken.touch()
    os.kill(mounted.worker(), signal.SIGKILL)
    reader = subprocess.Popen(["cat", mounted.target / "large"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        # Asked for again and again, each time in vain: then nobody answers.
        wait(lambda: len(broken.read_text()) >= 2)
        mounted.machine.json("status")
        if is_guarded:
            out, _ = reader.communicate(timeout=60)
            assert reader.returncode != 0
            assert (mounted.source / "large").read_bytes().startswith(out)
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                reader.communicate(timeout=6)
            os.kill(keeper, signal.SIGKILL)
            reader.communicate(timeout=60)
    finally:
        reader.kill()
    broken.unlink()
    if is_guarded:
        # It is no empty directory: who copies from there, or takes away what is not there, shall know.
        wait(lambda: mounted.machine.json("status")["mounts"][0]["state"] == "dead")
        mounted.drop_page_cache()
        assert "umount --force" in mounted.finding(code=11)["hint"]
        for path in ("00/001.jpg", "text"):
            with pytest.raises(OSError, match="Input/output error"):
                (mounted.target / path).read_bytes()
        assert len(os.listdir(mounted.target)) == len(os.listdir(mounted.source))
    else:
        with suppress(AssertionError):
            mounted.unmount("--force")
    mounted.mount()
    mounted.assert_same()
