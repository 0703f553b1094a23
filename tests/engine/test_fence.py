"""Worker processes that outlive a killed restore: the next one waits for what they write, then shuts them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synclib.clock import ManualClock
from synclib.core.entry import Kind
from synclib.core.plan import Piece, plan_window
from synclib.disk.held import Held, writing
from synclib.engine.fetch_job import FetchJob, encode_plans, run_fetch_job
from synclib.engine.host import Connect
from synclib.errors import Conflict, Fenced
from synclib.lazy.chain import Chain
from synclib.lazy.dataset import STORE_KEY
from synclib.lazy.run_reader import StoreRuns
from synclib.store.open import open_store
from tests.kit import Kit, read_tree


def file_kit(place: Path) -> Kit:
    (place / "store").mkdir()
    url = f"file://{place}/store"
    store = open_store(url, {})[0]
    store.put(STORE_KEY, b"{}")
    return Kit(place, store, connect=Connect(url))


def jobs(kit: Kit, target: Path, seq: int, fence: bytes) -> list[FetchJob]:
    manifest = kit.dataset.manifest_at(seq)
    chain = Chain.of(StoreRuns(kit.store), kit.dataset.root, manifest.runs)
    pieces = [Piece(entry, entry.chunks, 0, is_whole=True) for entry in chain.entries() if entry.kind == Kind.FILE]
    assert kit.connect is not None
    return [
        FetchJob(number, kit.connect, kit.dataset.root, os.fsencode(target), encode_plans([plan]), {}, fence)
        for number, plan in enumerate(plan_window(pieces))
    ]


def test_a_worker_of_an_older_restore_writes_nothing(tmp_path: Path) -> None:
    kit = file_kit(tmp_path)
    kit.write({b"a": b"1"})
    kit.publish()
    kit.write({b"a": b"2"})
    kit.publish()
    out = tmp_path / "out"
    kit.restore(out, 1)
    fence = (out / ".boxlink/lock").read_bytes()
    (late,) = jobs(kit, out, 2, fence)
    kit.restore(out, 1, is_full=True)
    with pytest.raises(Fenced):
        run_fetch_job(late)
    assert read_tree(out) == {b"a": b"1"}
    # Of the restore at work it is done.
    (own,) = jobs(kit, out, 2, (out / ".boxlink/lock").read_bytes())
    run_fetch_job(own)
    assert read_tree(out) == {b"a": b"2"}


def test_a_restore_waits_for_a_worker_that_writes(tmp_path: Path) -> None:
    held = Held(tmp_path)
    lock = held.lock()
    clock = ManualClock()
    held.fence(lock, b"first", clock)
    with writing(os.fsencode(tmp_path), b"first"), pytest.raises(Conflict, match="still writes"):
        held.fence(lock, b"next!", clock)
    assert clock.monotonic() > 0
    held.fence(lock, b"third", clock)
    os.close(lock)
