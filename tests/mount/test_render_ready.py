"""`boxlink render` says that it is ready: that ends the start-up of whoever reads, not its silence."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.boxlink_process import Machine
from tests.pictures import small_wall
from tools.demo.mounts import end_mounts

# A start-up that nobody says the end of lasts for ever.
_HOOKS = """
import sys
if any("boxlink" in word or "tools." in word for word in sys.orig_argv):
    from synclib.core import trace
    trace.QUIET_S = trace.START_UP_S_MAX = 1e9
"""


@pytest.mark.parametrize("mode", ["lazy", "reader"])
def test_a_render_server_that_is_ready_ends_the_start_up(tmp_path: Path, mode: str) -> None:
    machine = Machine(tmp_path)
    source, data, hooks = tmp_path / "source", tmp_path / "data", tmp_path / "hooks"
    for path, content in small_wall(30).items():
        file = source / path.decode()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOKS)
    machine.run("init")
    machine.run("publish", "covers", source)
    machine.environment["PYTHONPATH"] = f"{hooks}:{os.environ.get('PYTHONPATH', '')}"
    (data / "covers").mkdir(parents=True)
    (data / "covers/synch.active").write_text(mode)
    log = open(tmp_path / "sync.log", "wb")  # noqa: SIM115 - the daemon's
    started = [
        machine.start("sync", "--data", data, "--poll", "0.2", "--no-hydrate", stdout=log, stderr=log),
        machine.start(
            *("render", "--data", data, "--dataset", "covers", "--listen", "127.0.0.1:0", "--json"),
            stderr=subprocess.DEVNULL,
        ),
    ]
    try:
        assert started[1].stdout is not None
        assert any(json.loads(line)["event"] == "ready" for line in started[1].stdout)
        deadline = time.monotonic() + 60
        while not (traces := machine.json("trace", "show", "covers")["traces"]):
            assert time.monotonic() < deadline, (tmp_path / "sync.log").read_text()
            time.sleep(0.1)
        assert [trace["seq"] for trace in traces] == [1]
        assert all("catalog" in touch["path"] for touch in machine.json("trace", "show", "covers")["touches"])
    finally:
        for process in reversed(started):
            process.kill()
            process.communicate()
        log.close()
        with contextlib.suppress(AssertionError):
            end_mounts(data, machine.json)
