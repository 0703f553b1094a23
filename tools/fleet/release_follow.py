"""A node's releases follow a channel: ``boxlink up`` runs this beside a role that says so, and begins anew when it
ends.

What a channel names is fetched beside what runs, checked to the last byte, tried, and activated. Nothing of it runs,
and nothing that runs is touched, before that: a newer one that is refused is said, and the old one goes on.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from synclib.core.names import release_root
from synclib.core.registration import Channel
from synclib.core.release import Statement
from synclib.engine.channels import Read, read_channel
from synclib.engine.host import Connect, Host, no_progress
from synclib.engine.release import read_statement, release_command
from synclib.errors import BoxlinkError, Invalid
from synclib.store.base import Store
from tools.fleet.programs import boxlink_of
from tools.fleet.release_place import Trust, activate, fetch, propose
from tools.fleet.release_prune import prune
from tools.fleet.release_refused import forget, refused
from tools.fleet.release_seen import note_seen

_TRY_S = 60.0
_SAID_MAX = 300
_PAUSE_FIRST_S = 60.0
_PAUSE_MAX_S = 3600.0
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


@dataclass(frozen=True)
class Failed:
    """What was refused, and when it is tried again: something on this machine may have been mended."""

    statement: Statement
    pause_s: float
    again_at: float


def decide(channel: Channel, release: str, running: int) -> tuple[int | None, str]:
    """The seq to take, None for none; and why none, where that is worth a word."""
    if channel.root != release_root(release):
        return None, f"it is of {channel.root}, not of release {release}"
    if channel.seq == running:
        return None, ""
    if channel.frozen:
        return None, f"it is frozen, at seq {channel.seq}"
    if channel.seq < running:
        return (
            None,
            f"it stands at seq {channel.seq}, older than seq {running} that runs: boxlink release rollback {release}",
        )
    return channel.seq, ""


class ReleaseFollower:
    def __init__(
        self, following: Following, store: Store, connect: Connect | None, host: Host, trust: Trust, say: Say
    ) -> None:
        self._following, self._store, self._connect, self._host = following, store, connect, host
        self._trust, self._say = trust, say
        self._place = following.into.absolute() / following.release
        self._read: Read | None = None
        self._said = ""
        self._failed: Failed | None = None
        self._due: tuple[int, float] | None = None  # which seq is here and was tried, and when its turn comes

    def run(self) -> int:
        """Returns the seq that is to run now, another than the one that runs. To be told to end is an ordinary end of
        what waits for ever: SystemExit, without a word, and with the code that says that it was not that seq."""
        try:
            return self._wait_for_newer()
        except KeyboardInterrupt as asked:
            if signal.SIGTERM not in asked.args:
                raise
            raise SystemExit(128 + signal.SIGTERM) from None

    def _wait_for_newer(self) -> int:
        while True:
            try:
                seq = self.step()
                if seq is not None:
                    return seq
            except BoxlinkError as error:
                where = error.key or error.path
                hint = f" ({error.hint})" if error.hint else ""
                self._tell(f"{error.kind}: {where + ': ' if where else ''}{error.message}{hint}")
            self._host.clock.sleep(self._pause_s())

    def step(self) -> int | None:
        """One look at the channel. Any BoxlinkError: a later one may do better."""
        following = self._following
        newer = read_channel(self._store, following.channel, None if self._read is None else self._read.etag)
        # A store that serves an older state of it than was seen here moves nobody.
        if newer is not None and (self._read is None or newer.channel.moves >= self._read.channel.moves):
            self._read = newer
            self._note("")
        assert self._read is not None
        self._forget_others(self._read.channel)
        seq, why = decide(self._read.channel, following.release, following.running)
        if seq is None:
            self._tell(why and f"channel {following.channel} is not followed: {why}")
            return None
        if self._is_refused(seq):
            return None
        if self._due is None or self._due[0] != seq:
            self._bring(seq)
        if self._due is None or self._due[0] != seq or self._host.clock.monotonic() < self._due[1]:
            return None
        self._hand_over(seq)
        return seq

    def _forget_others(self, channel: Channel) -> None:
        """What was refused is so until the channel has named another."""
        found = refused(self._place)
        if found is not None and channel.root == release_root(self._following.release) and channel.seq != found.seq:
            forget(self._place)

    def _is_refused(self, seq: int) -> bool:
        """Whether it was run here and did not live, or a rollback took it back."""
        found = refused(self._place)
        if found is None or found.seq != seq:
            return False
        again = f"{release_command('activate', self._place, seq)} and a new start try it all the same"
        self._tell(f"release {self._following.release} seq {seq} is not taken: {found.why} ({again})")
        return True

    def _bring(self, seq: int) -> None:
        """Fetch and try a seq, unless that has just failed with what is signed of it."""
        following, now = self._following, self._host.clock.monotonic()
        statement = read_statement(self._store, following.release, seq)
        former = self._failed if self._failed is not None and self._failed.statement == statement else None
        if former is not None and now < former.again_at:
            return
        try:
            brought = fetch(
                self._store, self._connect, following.release, seq, following.into, self._trust, self._host, no_progress
            )
            check_runs(brought.directory, following.trial)
        except BoxlinkError as error:
            if not error.is_retryable:
                pause_s = _PAUSE_FIRST_S if former is None else min(2 * former.pause_s, _PAUSE_MAX_S)
                self._failed = Failed(statement, pause_s, self._host.clock.monotonic() + pause_s)
            raise
        wait_s = following.spread_s * self._host.entropy.uniform()
        self._due = seq, self._host.clock.monotonic() + wait_s
        self._say(f"release {following.release} seq {seq} is here, and its turn comes in {wait_s:.0f} s")

    def _hand_over(self, seq: int) -> None:
        following = self._following
        self._due = None  # should it be refused now, it is fetched again
        if following.trial:
            # ``boxlink up`` runs it and sees how it does, before it is the one that runs.
            propose(following.release, seq, following.into, self._trust)
            return
        activate(following.release, seq, following.into, self._trust)
        try:
            prune(following.release, following.into, is_dry_run=False)
        except BoxlinkError as error:  # it is active all the same
            self._say(f"old releases stay: {error.message}")

    def _note(self, error: str) -> None:
        if self._read is not None:
            with contextlib.suppress(OSError):  # figures alone are no reason to stand still
                note_seen(self._place, self._read.channel.seq, error)

    def _pause_s(self) -> float:
        """Until the next look, with jitter."""
        pause_s = self._following.poll_s * (0.8 + 0.4 * self._host.entropy.uniform())
        left = pause_s if self._due is None else self._due[1] - self._host.clock.monotonic()
        return max(0.05, min(pause_s, left))

    def _tell(self, text: str) -> None:
        """What is the same as before is not said again; ``up`` is told too, whose figures it is part of."""
        self._note(text)
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
