"""A publisher: edits its directory and publishes it."""

from __future__ import annotations

import os

from synclib.disk.held import Held
from synclib.engine.host import no_progress
from synclib.engine.publish import PublishOptions, publish
from synclib.engine.restore import RestoreOptions, restore
from synclib.errors import BoxlinkError, Invalid, Missing
from tests.sim.edits import edited
from tests.sim.publishing import Publishing
from tests.sim.scheduler import Violation
from tests.sim.trees import difference, read_tree, write_tree


class Publisher(Publishing):
    """Edits its directory and publishes it; sometimes takes the head into it."""

    def operate(self) -> None:
        chance = self.random.random()
        if chance < 0.15 and not self.prefix:
            self.restore_in_place()
        else:
            if chance < 0.9:
                write_tree(self.directory, edited(self.random, read_tree(self.directory), self.clock.wall_ns()))
            self.publish(is_mirror=chance > 0.85)

    def publish(self, *, is_mirror: bool = False) -> BoxlinkError | None:
        """What it failed with."""
        attempt = self.begin(None if is_mirror else self.base)
        former = self.base
        options = PublishOptions(self.prefix, is_mirror=is_mirror, allow_delete=True)
        try:
            done = self.engine(
                lambda: publish(self.dataset, None, os.fsencode(self.directory), self.host, options, no_progress)
            )
        except BoxlinkError as error:
            self.world.note(self, "publish", "", type(error).__name__)
            self.judge(lambda: self.check_failed(attempt))
            self.judge(lambda: self.check_base([former, *self.bases_after(attempt)[1:]]))
            return error
        self.world.note(self, "publish", f"{done.seq} {done.is_new}", "ok")
        self.judge(lambda: self.check_published(attempt, done))
        self.judge(lambda: self.check_base([attempt.mine]))
        return None

    def restore_in_place(self) -> None:
        before = self.base
        try:
            manifest = self.engine(lambda: self.dataset.manifest_at(None))
            options = RestoreOptions(is_delete=self.random.random() < 0.5)
            done = self.engine(
                lambda: restore(self.dataset, manifest, None, self.directory, self.host, options, no_progress)
            )
        except BoxlinkError as error:
            self.world.note(self, "restore", "", type(error).__name__)
            self.judge(lambda: self.check_base([before]))
            return
        if done.problems:
            self.judge(lambda: self.check_base([before]))
            return
        self.world.note(self, "restore", str(manifest.seq), "ok")
        there = self.history.tree(manifest.seq)
        self.judge(lambda: self.check_base([there]))
        if options.is_delete and read_tree(self.directory) != there:
            self.world.scheduler.fail(
                Violation(f"I6: {self.name} is not seq {manifest.seq}\n{difference(there, read_tree(self.directory))}")
            )

    def after_kill(self) -> None:
        history = self.history
        allowed = [history.tree(seq) for seq in range(1, history.last + 1)] if self.attempt is None else []
        more = self.bases_after(self.attempt)[1:] if self.attempt is not None else []
        self.judge(lambda: self.check_base([self.base, *more, *allowed]))

    def settle(self) -> None:
        error = self.publish()
        if isinstance(error, Missing) or (isinstance(error, Invalid) and Held(self.directory).is_part()):
            # Its base is no longer kept, or its first restore came to nothing: as the error says.
            error = self.publish(is_mirror=True)
        if error is not None:
            self.world.scheduler.fail(Violation(f"I8: {self.name} cannot publish: {error.kind}: {error.message}"))


class FolderPublisher(Publisher):
    """Publishes its directory as a folder of the dataset."""

    prefix = b"d/e"
