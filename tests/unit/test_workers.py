"""Jobs in workers: no more are begun than may be in flight; their server is killed while it is asked for one."""

from __future__ import annotations

import multiprocessing.forkserver
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("in_flight", [2, 5])
def test_no_more_jobs_are_begun_than_may_be_in_flight(in_flight: int, is_ordered: bool) -> None:
    """However slow who takes the results is: what waits in a queue is in memory."""
    begun = taken = most = 0

    def jobs() -> Iterator[int]:
        nonlocal begun, most
        for number in range(50):
            # Asked for this one, it may look at it, but not begin it, before there is room.
            most = max(most, begun - taken)
            begun += 1
            yield number

    found = []
    for result in run_jobs(jobs(), abs, abs, lambda: ThreadPoolExecutor(2), in_flight, is_ordered=is_ordered):
        taken += 1
        found.append(result)
    assert sorted(found) == list(range(50))
    assert is_ordered is False or found == sorted(found)
    assert most == in_flight


def test_how_many_may_be_in_flight_may_fall() -> None:
    begun = taken = 0
    limits = [6]
    beyond = []

    def jobs() -> Iterator[int]:
        nonlocal begun
        for number in range(40):
            if number > 20:
                beyond.append(begun - taken)
            begun += 1
            yield number

    for result in run_jobs(jobs(), abs, abs, lambda: ThreadPoolExecutor(2), lambda: limits[0]):
        taken += 1
        limits[0] = 2 if result > 10 else 6
    assert max(beyond) <= 2
