"""A reader: restores or reads some seq by hand."""

from __future__ import annotations

import shutil

from synclib.core.entry import Kind
from synclib.disk.pieces import PieceCache
from synclib.engine.host import no_progress
from synclib.engine.lease import Holder, pin
from synclib.engine.restore import RestoreOptions, restore
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.open import open_view
from synclib.lazy.run_reader import StoreRuns
from synclib.lazy.view import ChunkSource, View
from tests.sim.actor import Actor
from tests.sim.history import ROOT
from tests.sim.scheduler import Violation
from tests.sim.trees import Thing, Tree, difference, read_tree


class Reader(Actor):
    """Restores some seq by hand, or reads it where it is: right bytes or an error (I6)."""

    def operate(self) -> None:
        if self.history.last:
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
        there, found = self.history.tree(manifest.seq), read_tree(self.directory)
        if there != found or done.problems or done.digest != self.history.seqs[done.seq - 1].digest:
            text = f"I6: {self.name} is not seq {done.seq} {done.problems}\n{difference(there, found)}"
            self.world.scheduler.fail(Violation(text))

    def read(self, seq: int | None) -> bool:
        """By hand, with what it keeps between two readings."""
        cache = PieceCache(self.place / "cache/pieces", 1 << 14) if self.random.random() < 0.7 else None
        try:
            self.engine(lambda: self.compare(open_view(self.dataset, seq, cache=cache)))
        except BoxlinkError as error:
            self.world.note(self, "read", "", type(error).__name__)
            return False
        finally:
            if cache is not None:
                cache.close()
        self.world.note(self, "read", str(seq), "ok")
        return True

    def compare(self, view: View) -> None:
        """Read all of a seq: right bytes, or an error."""
        found: Tree = {}
        for entry in view.walk():
            data = view.open(entry.path).pread(0, entry.size) if entry.kind == Kind.FILE else entry.target
            found[entry.path] = Thing(Kind(entry.kind), data, entry.mode, entry.mtime_ns)
        there = self.history.tree(view.seq)
        if there != found:
            text = f"I6: {self.name} read seq {view.seq}\n{difference(there, found)}"
            self.world.scheduler.fail(Violation(text))

    def check(self) -> None:
        for path, thing in read_tree(self.directory).items() if self.directory.exists() else ():
            if thing.kind == Kind.FILE and thing.data not in self.history.known[path]:
                raise Violation(f"I6: {self.name} has {path!r} with bytes that no seq has there: {thing.data[:40]!r}")

    def settle(self) -> None:
        """Every seq that nobody dropped can be read, for ever: some of them are."""
        seqs = sorted({version.seq for version in self.history.keeping.alive.values()})
        for seq in self.random.sample(seqs, min(3, len(seqs))):
            if not self.read(seq) and self.history.keeping.is_alive(seq):
                self.world.scheduler.fail(Violation(f"I8: {self.name} cannot read seq {seq}, though nothing is wrong"))


class PinnedReader(Reader):
    """Reads one seq for days, and says so in the store: nothing of it may go meanwhile."""

    def operate(self) -> None:
        if not self.history.last:
            return
        seq = self.seq_by_name()
        holder = pin(self.dataset, self.host)
        try:
            self.engine(lambda: self.hold(holder, seq))
        except BoxlinkError as error:
            self.world.note(self, "pin", str(seq), type(error).__name__)
        finally:
            self.engine(holder.end)

    def hold(self, holder: Holder, seq: int | None) -> None:
        head = self.dataset.read_head()
        manifest = self.dataset.manifest_at(seq)
        self.dataset.check_condemned(head, manifest)
        holder.take(head, manifest.seq)
        self.world.note(self, "pin", str(manifest.seq), "ok")
        for _ in range(self.random.randrange(1, 5)):
            chain = Chain.of(StoreRuns(self.retrying), ROOT, manifest.runs)
            try:
                self.compare(View(manifest, chain, ChunkSource(self.retrying, ROOT)))
            except Missing as error:
                if self.history.keeping.claims.stands(holder.key, self.clock.monotonic()):
                    text = f"I3: {self.name} has a pin on seq {manifest.seq}, but {error.key} is gone"
                    self.world.scheduler.fail(Violation(text))
                raise
            self.world.scheduler.stall(self.random.randrange(1, 40), self.random.choice([60.0, 5e4, 2e5]))
            holder.renew()

    def settle(self) -> None:
        """What it does is done."""
