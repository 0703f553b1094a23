"""Jobs in worker processes, bounded: what CPython's lock forbids threads to do side by side.

One job alone runs in this process: starting others would cost more than it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from multiprocessing.process import BaseProcess
from typing import TypeVar

from synclib.errors import Unavailable

J = TypeVar("J")
R = TypeVar("R")


def worker_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def start_processes(preload: str, count: int) -> ProcessPoolExecutor:
    """Worker processes that fork from a clean server: the parent's threads and store connections stay out of them."""
    context = _WorkerContext()
    context.set_forkserver_preload([preload])
    # It comes before: its own start ends with SIGINT let through again.
    resource_tracker.ensure_running()
    # What starts with them blocked never sees Ctrl-C, or a supervisor's SIGTERM, which go to all of the group: who
    # asked for the work decides what becomes of it.
    with _held_back({signal.SIGINT, signal.SIGTERM}):
        forkserver.ensure_running()
    return ProcessPoolExecutor(count, mp_context=context, initializer=_prepare_worker)


@contextlib.contextmanager
def _held_back(signals: set[signal.Signals]) -> Iterator[None]:
    """These signals come to this thread only afterwards; the main one also takes none that came to another thread."""
    is_main = threading.current_thread() is threading.main_thread()
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: came.append(n)) for number in signals} if is_main else {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if came:
            signal.raise_signal(came[0])


class _WorkerProcess(ForkServerProcess):
    """A process that does not run the caller's main module again: our jobs never live there."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 - the name that multiprocessing calls
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return ForkServerProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main

    def terminate(self) -> None:
        """SIGTERM is blocked in it."""
        self.kill()


class _WorkerContext(ForkServerContext):
    Process = _WorkerProcess


def _prepare_worker() -> None:
    """A parent that was killed must not leave workers waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def run_jobs(
    jobs: Iterable[J],
    here: Callable[[J], R],
    there: Callable[[J], R],
    start: Callable[[], Executor] | None,
    in_flight: int | Callable[[], int],
    *,
    is_ordered: bool = True,
) -> Iterator[R]:
    """The results of jobs, with at most ``in_flight`` of them begun and not yet taken; it may change from one job to
    the next. In the jobs' order, or, so that none waits for an older one, in that in which they end.

    A single job, or all of them when ``start`` is None, runs in this process by ``here``; else in the executor that
    ``start`` makes, by ``there``.
    """
    iterator = iter(jobs)
    first, second = next(iterator, None), None
    if first is not None and start is not None:
        second = next(iterator, None)
    if first is None:
        return
    if start is None or second is None:
        yield here(first)
        for job in iterator:
            yield here(job)
        return
    executor = start()
    pending: deque[Future[R]] = deque()

    def submit(job: J) -> None:
        # It may start a process, which would be lost, and say so, if we were interrupted halfway.
        try:
            with _held_back({signal.SIGINT, signal.SIGTERM}):
                pending.append(executor.submit(there, job))
        except (EOFError, ConnectionError) as error:
            # Of the server that workers fork from, which was asked for one more.
            raise Unavailable("the server of worker processes was killed", hint="run it again") from error

    def taken() -> Future[R]:
        found = pending[0] if is_ordered else next(iter(wait(pending, return_when=FIRST_COMPLETED).done))
        pending.remove(found)
        return found

    try:
        submit(first)
        submit(second)
        for job in iterator:
            while len(pending) >= (in_flight if isinstance(in_flight, int) else in_flight()):
                yield taken().result()
            submit(job)
        while pending:
            yield taken().result()
    except BrokenExecutor as error:
        raise Unavailable("a worker process was killed", hint="is there enough memory? run it again") from error
    except KeyboardInterrupt:
        # Nobody waits for what they are at: it is done again.
        for worker in multiprocessing.active_children():
            worker.kill()
        raise
    finally:
        for future in pending:
            future.cancel()
        # It ends with finalizers, and an interrupt that falls into one is lost, and says so.
        with _held_back({signal.SIGINT, signal.SIGTERM}), contextlib.suppress(BrokenExecutor):
            executor.shutdown(wait=True)
