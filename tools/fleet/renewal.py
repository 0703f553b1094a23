"""How ``boxlink up`` goes over to a newer release: a process beside the role's waits for one, and then ``up`` runs the
``up`` of that release, and stays to see how it does. And back: to ``current``, when a rollback took back what runs.

    up, of the release that the node was started with
        up, of the newest one: on trial at first      all of its processes

Who ends on trial, or whose processes fail again and again, is refused: the release that ran before runs again. The link
``current`` names a newer one only once it has passed, so that after a kill or a power cut the proven one starts.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from synclib.clock import Clock
from synclib.core.role import Role
from synclib.errors import BoxlinkError, Invalid
from tools.bootstrap.links import CURRENT, NEXT, SEQ, is_taken_back, linked_seq
from tools.fleet.child import bound_to_parent, is_caught
from tools.fleet.console import Console
from tools.fleet.find_role import Place
from tools.fleet.programs import boxlink_of
from tools.fleet.release_refused import refuse
from tools.fleet.supervisor import KEPT, ON_TRIAL, PROVEN, RENEWING, TRIAL_S, USER_SIGNALS, Planned, stop_signals
from tools.notify import READY, SOCKET, STOPPING, notify

FOLLOWER = "follow-release"
_READY_S = 60.0
_STOP_S = 20.0


def follower_of(
    role: Role,
    role_name: str,
    place: Place,
    values: Sequence[str],
    environ: Mapping[str, str],
    trust: Sequence[Path],
) -> Planned:
    """The process that waits for a newer release. ``role_name`` and ``values`` as they were given. Invalid where what
    runs is no release that was fetched."""
    release = place.release
    if release is None or not SEQ.fullmatch(release.name):
        raise Invalid(
            f"role {role.role} follows channel {role.release_channel}, and no release of it runs",
            hint="boxlink release fetch NAME, boxlink release activate NAME, then --release DIR/NAME/current",
        )
    if any(process.name == FOLLOWER for process in role.process):
        raise Invalid(f"a process of role {role.role} is called {FOLLOWER}", hint="call it something else")
    command = [str(boxlink_of(release)), "release", "follow", release.parent.name, "--channel", role.release_channel]
    command += ["--running", release.name, "--into", str(release.parent.parent)]
    command += ["--spread", f"{role.release_spread_s:g}", "--node", place.node]
    command += ["--role", role_name, "--data", str(place.data)]
    for value in values:
        command += ["--set", value]
    for path in trust:
        command += ["--trust", str(path.absolute())]
    return Planned(FOLLOWER, command, dict(environ), _STOP_S, is_renewing=True, is_own=True)


class Renewal:
    """Runs one ``up`` after the other, each until a newer release is to run. ``words``: of the command, but for its
    program and its release. Which seqs of datasets are asked for was written at the first start, and stays as it is."""

    def __init__(self, release: Path, words: Sequence[str], console: Console, clock: Clock) -> None:
        """``release``: the directory of the one that ran until now."""
        self._home, self._proven = release.parent, int(release.name)
        self._words, self._console, self._clock = words, console, clock
        self._is_stopping = False

    def run(self) -> int:
        """Its exit code, once one has ended for good. Must be called in the main thread (Supervisor.run)."""
        with stop_signals() as signals:
            seq = self._next()
            while True:
                code = self._run(seq, signals)
                if code == RENEWING and not self._is_stopping:
                    seq = self._next()
                elif seq == self._proven or self._is_stopping:
                    return code if code >= 0 else 128 - code  # as a shell says of a signal
                else:
                    why = f"its boxlink up ended at once, with {'code' if code >= 0 else 'signal'} {abs(code)}"
                    self._console.event("refused", seq=seq, why=why, back_to=self._proven)
                    with self._said("it will be tried again"):
                        refuse(self._home, seq, why)
                    seq = self._proven

    def _next(self) -> int:
        """What is to be tried, else what is proven: after a rollback that is another."""
        if is_taken_back(self._home, self._proven):
            self._proven = linked_seq(self._home, CURRENT) or self._proven
        return linked_seq(self._home, NEXT) or self._proven

    def _run(self, seq: int, signals: int) -> int:
        """The exit code of the ``up`` of a seq."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind("")  # the kernel finds a free name (unix(7), autobind)
            told.setblocking(False)
            try:
                process = self._start(seq, "@" + told.getsockname()[1:].decode())
            except OSError as error:
                self._console.event("not-started", seq=seq, why=str(error))
                return Invalid.exit_code
            pidfd = os.pidfd_open(process.pid)
            try:
                self._watch(seq, process, pidfd, told, signals)
            finally:
                os.close(pidfd)
            return process.wait()

    def _start(self, seq: int, address: str) -> subprocess.Popen[bytes]:
        release = self._home / str(seq)
        # What the one before was given of its own release would be taken for that of the newer one.
        environ = {name: value for name, value in os.environ.items() if name not in ("BOXLINK_RELEASE", "WATCHDOG_PID")}
        environ |= {SOCKET: address, KEPT: PROVEN if seq == self._proven else ON_TRIAL}
        sys.stdout.flush()
        sys.stderr.flush()
        return subprocess.Popen(
            [str(boxlink_of(release)), *self._words, "--release", str(release)],
            env=environ,
            stdin=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is handed on, and must not come twice
            preexec_fn=bound_to_parent(),  # noqa: PLW1509 # there is one thread
        )

    def _watch(self, seq: int, process: subprocess.Popen[bytes], pidfd: int, told: socket.socket, signals: int) -> None:
        """Until it has ended. On trial it has to be ready in time, and to live for a while then."""
        due_at = None if seq == self._proven else self._clock.monotonic() + _READY_S
        is_ready = False
        while True:
            wait_s = None if due_at is None else max(0.0, due_at - self._clock.monotonic())
            came = select.select([pidfd, told.fileno(), signals], [], [], wait_s)[0]
            if signals in came:
                self._hand_on(process.pid, pidfd, os.read(signals, 512))
            if told.fileno() in came:
                said = told.recv(4096).decode(errors="replace")
                notify(said)
                if READY in said and due_at is not None and not is_ready:
                    is_ready, due_at = True, self._clock.monotonic() + TRIAL_S
            if pidfd in came:
                return
            if due_at is not None and self._clock.monotonic() >= due_at:
                due_at = None
                if is_ready:
                    self._pass(seq)
                else:
                    process.kill()

    def _hand_on(self, pid: int, pidfd: int, numbers: bytes) -> None:
        for number in numbers:
            if number in USER_SIGNALS:
                if not is_caught(pid, number):
                    continue
            elif number != signal.SIGHUP and not self._is_stopping:
                self._is_stopping = True
                notify(STOPPING)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def _pass(self, seq: int) -> None:
        """It lives: from now on it is the one to come back to."""
        from tools.fleet.release_place import pass_trial
        from tools.fleet.release_prune import prune

        with self._said("the release before it is the one that starts next"):
            if not pass_trial(self._home, seq):
                why = "a person chose another meanwhile, which the next start runs"
                self._console.event("not-activated", seq=seq, why=why)
                return
            self._proven = seq
            self._console.event("activated", seq=seq)
        with self._said("old releases stay"):
            prune(self._home.name, self._home.parent, is_dry_run=False)

    @contextlib.contextmanager
    def _said(self, meaning: str) -> Iterator[None]:
        try:
            yield
        except BoxlinkError as error:
            self._console.event("failed", why=error.message, so=meaning)
