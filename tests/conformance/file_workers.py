"""What other processes do to a file store in tests; they are spawned, so they import this."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier, Event

from synclib.clock import SystemClock, SystemEntropy
from synclib.errors import Conflict
from synclib.store.file import FileStore


def open_file_store(root: str) -> FileStore:
    return FileStore(root, SystemClock(), SystemEntropy())


def increment(root: str, times: int, barrier: Barrier) -> None:
    store = open_file_store(root)
    barrier.wait(timeout=60)
    for _ in range(times):
        while True:
            fetched = store.get("count", size_max=99)
            assert fetched is not None
            try:
                store.put("count", b"%d" % (int(fetched.data) + 1), if_match=fetched.etag)
                break
            except Conflict:
                continue


def claim(root: str, rounds: int, worker: int, barrier: Barrier) -> None:
    """Try to create ``race/<round>``, then say under ``won/`` which ones it was told it had won."""
    store = open_file_store(root)
    barrier.wait(timeout=60)
    for number in range(rounds):
        try:
            store.put(f"race/{number}", b"%d" % worker, if_absent=True)
        except Conflict:
            continue
        store.put(f"won/{number}/{worker}", b"")


def rewrite(root: str, key: str, sizes: list[int], stop: Event) -> None:
    """Replace an object again and again; each version is one byte value, which also says its size."""
    store = open_file_store(root)
    number = 0
    while not stop.is_set():
        which = number % len(sizes)
        store.put(key, bytes([which]) * sizes[which])
        number += 1


def put_from(root: str, key: str, path: str) -> None:
    from pathlib import Path

    open_file_store(root).put(key, Path(path))
