"""Jobs side by side in threads, no more of them at once than memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future


def run_side_by_side(jobs: Iterable[Callable[[], None]], executor: Executor | None, at_once: int) -> None:
    """Run all jobs, at most ``at_once`` at a time; without an executor one by one.

    After an error no job more is begun, and it is raised when none is at work any longer: what they write to is the
    caller's again. Not for a thread of ``executor`` itself, which it would wait for.
    """
    if executor is None:
        for job in jobs:
            job()
        return
    from concurrent.futures import wait  # which a command that reads one small file does without

    under_way: set[Future[None]] = set()
    try:
        for job in jobs:
            if len(under_way) >= at_once:
                _take_done(under_way)
            under_way.add(executor.submit(job))
        while under_way:
            _take_done(under_way)
    finally:
        for future in under_way:
            future.cancel()
        wait(under_way)


def _take_done(under_way: set[Future[None]]) -> None:
    """Wait for jobs that are done, and take them out; their error is raised."""
    from concurrent.futures import FIRST_COMPLETED, wait

    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    under_way -= done
    for future in done:
        future.result()
