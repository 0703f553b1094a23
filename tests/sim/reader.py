"""A reader: restores or reads some seq by hand."""

from __future__ import annotations

import shutil

from synclib.core.entry import Kind
from synclib.engine.host import no_progress
from synclib.engine.restore import RestoreOptions, restore
from synclib.errors import BoxlinkError
from synclib.lazy.chain import Chain
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.view import ChunkSource, View
from tests.sim.actor import Actor
from tests.sim.history import ROOT
from tests.sim.scheduler import Violation
from tests.sim.trees import Thing, Tree, difference, read_tree


class Reader(Actor):
    """Restores some seq by hand, or reads it where it is: right bytes or an error (I6)."""

    def operate(self) -> None:
        if self.world.history.last:
            seq = self.seq_by_name()
            if self.random.random() < 0.6:
                self.restore(seq)
            else:
                self.read(seq)

    def restore(self, seq: int | None) -> None:
        if self.random.random() < 0.2 and self.directory.exists():
            shutil.rmtree(self.directory)
        options = RestoreOptions(is_full=self.random.random() < 0.5, is_durable=self.random.random() < 0.5)
        try:
            manifest = self.engine(lambda: self.dataset.manifest_at(seq))
            done = self.engine(
                lambda: restore(self.dataset, manifest, None, self.directory, self.host, options, no_progress)
            )
        except BoxlinkError as error:
            self.world.note(self, "restore", "", type(error).__name__)
            return
        self.world.note(self, "restore", str(done.seq), "ok")
        there, found = self.world.history.tree(manifest.seq), read_tree(self.directory)
        if there != found or done.problems or done.digest != self.world.history.seqs[done.seq - 1].digest:
            text = f"I6: {self.name} is not seq {done.seq} {done.problems}\n{difference(there, found)}"
            self.world.scheduler.fail(Violation(text))

    def read(self, seq: int | None) -> bool:
        found: Tree = {}
        try:
            manifest = self.dataset.manifest_at(seq)
            chain = Chain.of(StoreRuns(self.retrying), ROOT, manifest.runs)
            view = View(manifest, chain, ChunkSource(self.retrying, ROOT))
            for entry in view.walk():
                data = view.open(entry.path).pread(0, entry.size) if entry.kind == Kind.FILE else entry.target
                found[entry.path] = Thing(Kind(entry.kind), data, entry.mode, entry.mtime_ns)
        except BoxlinkError as error:
            self.world.note(self, "read", "", type(error).__name__)
            return False
        self.world.note(self, "read", str(manifest.seq), "ok")
        there = self.world.history.tree(manifest.seq)
        if there != found:
            self.world.scheduler.fail(Violation(f"I6: {self.name} read seq {seq}\n{difference(there, found)}"))
        return True

    def check(self) -> None:
        for path, thing in read_tree(self.directory).items() if self.directory.exists() else ():
            if thing.kind == Kind.FILE and thing.data not in self.world.history.known[path]:
                raise Violation(f"I6: {self.name} has {path!r} with bytes that no seq has there: {thing.data[:40]!r}")

    def settle(self) -> None:
        """Every seq can be read, for ever: some of them are."""
        seqs = range(1, self.world.history.last + 1)
        for seq in self.random.sample(seqs, min(3, len(seqs))):
            if not self.read(seq):
                self.world.scheduler.fail(Violation(f"I8: {self.name} cannot read seq {seq}, though nothing is wrong"))
