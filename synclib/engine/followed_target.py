"""What should stand in a dataset's directory on a node: the head, or the seq that a channel or a marker names."""

from __future__ import annotations

from synclib.core.manifest import Manifest
from synclib.core.markers import Active
from synclib.core.node import poll_delay
from synclib.disk.held import Held
from synclib.engine.channels import ChannelWatch
from synclib.engine.host import Host
from synclib.engine.node_figures import Followed
from synclib.errors import BoxlinkError
from synclib.lazy.dataset import Dataset, HeadState


class FollowedTarget:
    """One dataset's. ``due``: when the store is to be asked again, monotonic."""

    def __init__(
        self,
        dataset: Dataset,
        held: Held,
        host: Host,
        poll_s: float,
        channels: ChannelWatch | None,
        figures: Followed,
    ) -> None:
        self.due = 0.0
        self._dataset, self._held, self._host, self._poll_s = dataset, held, host, poll_s
        self._channels, self._figures = channels, figures
        self._head: HeadState | None = None
        self._changed_at: float | None = None
        self._named: Manifest | None = None  # that of the seq that is asked for by number, as it was found last

    def on_channel(self, active: Active) -> Active:
        """What is asked for, where a channel says which seq: an operator moved it there, by name (I2)."""
        if active.seq is not None or self._channels is None:
            return active
        seq = self._channels.seq_of(self._dataset.root)
        if seq is not None:
            self._figures.polled_at = self._host.clock.monotonic()
        return active if seq is None else active.model_copy(update={"seq": seq})

    def find(self, seq: int | None) -> Manifest:
        """The head, by one conditional GET when it is due; or the seq that is asked for, for which the head is read
        once."""
        now = self._host.clock.monotonic()
        named = self._named
        if seq is not None and named is not None and named.seq == seq:
            self.due = now + poll_delay(self._poll_s, None, self._host.entropy.uniform())
            return named
        if self._head is None or now >= self.due or seq is not None:
            self._poll(now)
        assert self._head is not None
        if seq is None:
            return self._head.manifest
        self._named = self._manifest_of(seq, self._head)
        return self._named

    def is_overtaken(self, target: Manifest | None) -> bool:
        """Whether the head moved on from a target whose objects are gone: then the next look plans anew."""
        self._named = None
        if target is None or self._head is None or target != self._head.manifest:
            return False
        self.due = self._host.clock.monotonic()
        newer = self._dataset.read_head_since(self._head.etag)
        if newer is not None:
            self._head = newer
        return newer is not None

    def forget_head(self) -> None:
        """We have changed it ourselves."""
        self._head = None

    def _poll(self, now: float) -> None:
        state = self._dataset.read_head_since(self._head.etag if self._head is not None else None)
        self._figures.polled_at = self._host.clock.monotonic()
        if state is not None:
            if self._head is not None:
                self._changed_at = now
            self._head = state
        since = None if self._changed_at is None else now - self._changed_at
        self.due = now + poll_delay(self._poll_s, since, self._host.entropy.uniform())

    def _manifest_of(self, seq: int, head: HeadState) -> Manifest:
        if seq == head.manifest.seq:
            return head.manifest
        try:
            return self._held.manifest(seq)
        except BoxlinkError:
            return self._dataset.manifest_at(seq)
