"""What stands in a restored directory by our own record: before a restore, while one is under way, and after it."""

from __future__ import annotations

import os
import tempfile

from synclib.core.manifest import RunRef
from synclib.disk.atomic import sync_file_system
from synclib.disk.base import BaseFile
from synclib.disk.held import Held, Restoring, State, Unsynced, boot_id
from synclib.engine.task import RestoreTask
from synclib.lazy.run_cache import RunCache


class Standing:
    """``before``: what stood here when the restore began; None where nothing of this dataset of this store did."""

    def __init__(self, task: RestoreTask, held: Held, runs: RunCache) -> None:
        self._task, self._held, self._runs = task, held, runs
        self._dataset, self._manifest, self._options = task.dataset, task.manifest, task.options
        found = held.read()
        is_ours = found is not None and (found.store, found.root) == (task.dataset.store.url, task.dataset.root)
        self.before: State | None = found if is_ours else None
        self._unsynced: Unsynced | None = None

    @property
    def runs(self) -> list[RunRef]:
        """The chain that stood here."""
        return self.before.runs if self.before is not None else []

    def published(self) -> list[RunRef]:
        """The chain of what was published from this directory, where nothing was restored into it yet."""
        dataset = self._dataset
        base = BaseFile(
            self._task.host.state, dataset.store.url, dataset.root, os.fsencode(self._task.directory)
        ).read()
        return base.runs if base is not None and base.is_whole else []

    @property
    def abandoned(self) -> list[list[RunRef]]:
        """The chains of restores that never ended."""
        restoring = self.before.restoring if self.before is not None else None
        return [] if restoring is None else restoring.targets

    @property
    def is_clean(self) -> bool:
        """Whether a whole seq stood here."""
        return self.before is not None and bool(self.before.seq) and self.before.restoring is None

    def is_done_already(self) -> bool:
        """Whether the record says that this seq stands here. Its chain may have been compacted since: that is noted."""
        before, manifest = self.before, self._manifest
        if before is None or before.restoring is not None:
            return False
        is_flushed = before.unsynced is None or not self._options.is_durable
        if (before.seq, before.digest) != (manifest.seq, manifest.digest) or not is_flushed:
            return False
        if before.runs != manifest.runs and not self._options.path:
            self._unsynced = before.unsynced
            self.end()
        return True

    def begin(self) -> list[list[RunRef]]:
        """Write that the old seq no longer stands, and since when files are ours; the chains of restores that never
        ended, whose files must go too."""
        before = self.before
        if self._options.path and (before is None or before.runs == self._manifest.runs):
            # A part is no seq, and one of the seq that stands here changes nothing of what is written.
            return []
        former = before.restoring if before is not None else None
        abandoned = self.abandoned
        started = former.started_at_ns if former is not None and former.boot_id == boot_id() else self._disk_time_ns()
        targets = [*(runs for runs in abandoned if runs != self._manifest.runs), self._manifest.runs]
        restoring = Restoring(targets, started, boot_id())
        seq, digest, runs = (before.seq, before.digest, before.runs) if before is not None else (0, "", [])
        former_unsynced = before.unsynced if before is not None else None
        # What an older boot left unsynced has been looked at by now, all of it if this is a full restore.
        is_older = former_unsynced is not None and former_unsynced.boot_id == boot_id()
        self._unsynced = former_unsynced if is_older else Unsynced(started, boot_id())
        store_url, root = self._dataset.store.url, self._dataset.root
        self._held.write(State(store_url, root, seq, digest, runs, restoring, former_unsynced))
        return abandoned

    def _disk_time_ns(self) -> int:
        """Now by the file system's own clock, which may run a tick behind the wall clock."""
        self._held.directory.mkdir(exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._held.directory)
        try:
            return os.fstat(descriptor).st_ctime_ns
        finally:
            os.close(descriptor)
            os.unlink(path)

    def end(self) -> None:
        """Write that the new seq stands here, whole; it is the directory's base for a publish."""
        directory = self._task.directory
        if self._options.is_durable:
            sync_file_system(directory)
        dataset, manifest = self._dataset, self._manifest
        unsynced = None if self._options.is_durable else self._unsynced
        self._held.keep_manifest(manifest)
        self._held.write(
            State(dataset.store.url, dataset.root, manifest.seq, manifest.digest, manifest.runs, unsynced=unsynced)
        )
        self._runs.prune(self._held.kept_runs())
        base = BaseFile(self._task.host.state, dataset.store.url, dataset.root, os.fsencode(directory))
        base.write(manifest.seq, manifest.digest, manifest.runs, is_whole=True)
