"""Signals that come while something must not be broken off come afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from synclib.engine.workers import _held_back


@pytest.mark.parametrize("from_thread", [False, True])
def test_an_interrupt_comes_afterwards(from_thread: bool) -> None:
    """Also where another thread, that lets it through, is the one the kernel gives it to."""
    done = threading.Event()
    waiting = threading.Thread(target=done.wait)
    if from_thread:
        waiting.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    reached: list[bool] = []

    def interrupted() -> None:
        with _held_back({signal.SIGINT}):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                os.getpid()
            reached.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
        done.set()
        if from_thread:
            waiting.join()
    assert reached
