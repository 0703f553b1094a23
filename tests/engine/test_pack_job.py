"""The part of publishing that runs in worker processes."""

from __future__ import annotations

import os
from pathlib import Path

from synclib.core.entry import Kind
from synclib.disk.scan import Found
from synclib.engine.host import Connect
from synclib.engine.pack_job import Buffers, PackJob, PackResult, pack_files
from tests.kit import Kit


def run_job(kit: Kit, number: int, *names: bytes) -> PackResult:
    """A job of its own of the session "s", as a worker process has it."""
    found = []
    for name in names:
        status = os.stat(os.path.join(os.fsencode(kit.directory), name))
        found.append(Found(b"", name, Kind.FILE, 0o644, status.st_mtime_ns, status.st_size))
    index = kit.place / "chunks.sqlite"
    top = os.fsencode(kit.directory)
    job = PackJob(Connect("memory://"), kit.dataset.root, top, b"", index, "s", number.to_bytes(16, "big"), found)
    return pack_files(job, kit.store, Buffers())


def test_a_job_names_the_packs_of_later_jobs_that_it_refers_to(tmp_path: Path) -> None:
    """Jobs run side by side: a later one may have uploaded what an earlier one then finds, and be taken after it."""
    kit = Kit(tmp_path)
    kit.write({b"a": b"same" * 100, b"b": b"own" * 100, b"z": b"same" * 100})
    later = run_job(kit, 2, b"z")
    earlier = run_job(kit, 1, b"a", b"b")
    assert earlier.entries[0].chunks == later.entries[0].chunks
    assert {pack.ulid for pack in earlier.packs} == {c.pack for entry in earlier.entries for c in entry.chunks}
    assert later.packs[0] in earlier.packs
