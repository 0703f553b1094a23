"""Keeper and worker stand still, stopped at once: nobody is left to give up but the kernel, which does (Linux 6.15)."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mount.mounted import Mounted

_KERNEL_S = 15  # the kernel looks each 15 s (Linux, fs/fuse, FUSE_TIMEOUT_TIMER_FREQ)
_HOOKS = """
import sys
if "tools.mount_worker" in sys.orig_argv:
    from synclib.engine import mount
    mount._KERNEL_TIMEOUT_S = {seconds!r}
"""
_RELEASE = tuple(int(word) for word in os.uname().release.split(".")[:2])


@pytest.mark.skipif(_RELEASE < (6, 15), reason="this kernel waits for ever for a file system that says nothing")
@pytest.mark.parametrize(
    ("mode", "is_guarded"),
    [("erofs", True), ("fuse", True), ("erofs", False)],
    ids=["erofs", "fuse", "guard removed"],
)
def test_a_reader_gets_an_error(mounted: Mounted, tmp_path: Path, mode: str, is_guarded: bool) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOKS.format(seconds=_KERNEL_S if is_guarded else 0))
    mounted.machine.environment["PYTHONPATH"] = f"{hooks}:{os.environ.get('PYTHONPATH', '')}"
    keeper = mounted.mount("--mode", mode)["keeper"]
    assert isinstance(keeper, int)
    stopped = (keeper, mounted.worker())
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    reader = subprocess.Popen(["cat", mounted.target / "large"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        (row,) = mounted.machine.json("status")["mounts"]
        assert row["state"] == "no answer"
        if is_guarded:
            out, _ = reader.communicate(timeout=120)
            assert reader.returncode != 0
            assert (mounted.source / "large").read_bytes().startswith(out)
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                reader.communicate(timeout=3 * _KERNEL_S)
    finally:
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if not is_guarded else signal.SIGCONT)
        reader.kill()
        reader.wait(60)
    mounted.unmount("--force")
    mounted.mount("--mode", mode)
    mounted.assert_same()
