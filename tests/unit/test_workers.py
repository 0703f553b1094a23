"""Worker processes whose server is killed while it is asked for one."""

from __future__ import annotations

import multiprocessing.forkserver
import os

import pytest

from synclib.engine.workers import run_jobs, start_processes
from synclib.errors import Unavailable


def test_the_server_that_workers_fork_from_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EOFError would be taken for a Ctrl-D at a prompt, and told as an interrupt."""
    real = multiprocessing.forkserver.read_signed

    def killed(descriptor: int) -> int:
        os.kill(real(descriptor), 9)
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(multiprocessing.forkserver, "read_signed", killed)
    with pytest.raises(Unavailable, match="was killed"):
        list(run_jobs(range(3), abs, abs, lambda: start_processes("synclib.engine.workers", 2), 2))
