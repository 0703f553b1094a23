"""A node's releases follow a channel: ``boxlink up`` runs this beside a role that says so, and begins anew when it
ends.

What a channel names is fetched beside what runs, checked to the last byte, tried, and activated. Nothing of it runs,
and nothing that runs is touched, before that: a newer one that is refused is said, and the old one goes on.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synclib.core.names import release_root
from synclib.core.registration import Channel
from synclib.engine.channels import Read, read_channel
from synclib.engine.host import Connect, Host, no_progress
from synclib.errors import BoxlinkError, Invalid
from synclib.store.base import Store
from tools.fleet.programs import boxlink_of
from tools.fleet.release_place import Trust, activate, fetch
from tools.fleet.release_prune import prune

_TRY_S = 60.0
_SAID_MAX = 300
Say = Callable[[str], None]


@dataclass(frozen=True)
class Following:
    """``running``: the seq that runs. ``spread_s``: nodes change at a random moment within it, not all at once.
    ``trial``: role and words of the ``up`` that a newer one must be able to run; empty for none."""

    release: str
    channel: str
    running: int
    into: Path
    poll_s: float
    spread_s: float
    trial: tuple[str, ...] = ()


def decide(channel: Channel, release: str, running: int) -> tuple[int | None, str]:
    """The seq to take, None for none; and why none, where that is worth a word."""
    if channel.root != release_root(release):
        return None, f"it is of {channel.root}, not of release {release}"
    if channel.seq == running:
        return None, ""
    if channel.frozen:
        return None, f"it is frozen, at seq {channel.seq}"
    if channel.seq < running:
        return None, f"it stands at seq {channel.seq}, older than seq {running} that runs: boxlink release rollback"
    return channel.seq, ""


class ReleaseFollower:
    def __init__(
        self, following: Following, store: Store, connect: Connect | None, host: Host, trust: Trust, say: Say
    ) -> None:
        self._following, self._store, self._connect, self._host = following, store, connect, host
        self._trust, self._say = trust, say
        self._read: Read | None = None
        self._said = ""
        self._due: dict[int, float] = {}  # when a seq is to be activated

    def run(self) -> int:
        """Returns the seq that is active now, another than the one that runs."""
        while True:
            try:
                seq = self.step()
                if seq is not None:
                    return seq
            except BoxlinkError as error:
                self._tell(f"{error.kind}: {error.message}")
            self._host.clock.sleep(self._pause_s())

    def step(self) -> int | None:
        """One look at the channel. Any BoxlinkError: the next one may do better."""
        following = self._following
        newer = read_channel(self._store, following.channel, None if self._read is None else self._read.etag)
        # A store that serves an older state of it than was seen here moves nobody.
        if newer is not None and (self._read is None or newer.channel.moves >= self._read.channel.moves):
            self._read = newer
        assert self._read is not None
        seq, why = decide(self._read.channel, following.release, following.running)
        self._tell(why and f"channel {following.channel} is not followed: {why}")
        if seq is None:
            return None
        brought = fetch(
            self._store,
            self._connect,
            following.release,
            seq,
            following.into,
            self._trust,
            self._host,
            no_progress,
        )
        check_runs(brought.directory, following.trial)
        if seq not in self._due:
            wait_s = following.spread_s * self._host.entropy.uniform()
            self._due = {seq: self._host.clock.monotonic() + wait_s}
            self._say(f"release {following.release} seq {seq} is here, and is activated in {wait_s:.0f} s")
        if self._host.clock.monotonic() < self._due[seq]:
            return None
        activate(following.release, seq, following.into, self._trust)
        self._say(f"release {following.release} is at seq {seq}")
        try:
            prune(following.release, following.into, is_dry_run=False)
        except BoxlinkError as error:  # it is active all the same
            self._say(f"old releases stay: {error.message}")
        return seq

    def _pause_s(self) -> float:
        """Until the next look, with jitter."""
        pause_s = self._following.poll_s * (0.8 + 0.4 * self._host.entropy.uniform())
        left = [due - self._host.clock.monotonic() for due in self._due.values()]
        return max(0.05, min([pause_s, *(seconds for seconds in left if seconds > 0)]))

    def _tell(self, text: str) -> None:
        """What is the same as before is not said again."""
        if text and text != self._said:
            self._say(text)
        self._said = text


def check_runs(directory: Path, trial: Sequence[str]) -> None:
    """Whether the programs of a release start at all here, and find all that the role needs: it writes its units, which
    go at once. Invalid where they do not."""
    program = boxlink_of(directory)
    with tempfile.TemporaryDirectory() as units:
        words = ["up", *trial, "--release", str(directory), "--systemd", units] if trial else ["--version"]
        try:
            done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=_TRY_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Invalid(f"the release's boxlink does not run: {error}", path=str(program)) from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-_SAID_MAX:]
        raise Invalid(f"the release does not run here: {said or done.returncode}", path=str(program))
