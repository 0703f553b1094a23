"""The demo's processes: started in a directory of their own, watched, and stopped in order."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.demo.mounts import end_mounts
from tools.demo.program import WAIT_S, Program, ProgramError, boxlink_command

_MARK = ".boxlink-demo"
_STOP_S = 45.0


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Demo:
    """A store, a data directory and four programs under one directory."""

    def __init__(self, place: Path, store_url: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.place = place
        self.data = place / "data"
        self.store_url = store_url or f"file://{place}/store"
        self.port = 0
        self._started = time.monotonic()
        self._programs: dict[str, Program] = {}
        if place.exists() and not (place / _MARK).exists():
            raise DemoError(f"{place} exists and is not the demo's; move it away")
        place.mkdir(exist_ok=True)
        # Held until this process ends: another demo here would take the ground from under this one.
        self._mark = (place / _MARK).open("w")
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"a demo is running in {place}; stop it first") from None
        self.environ = {
            **os.environ,
            **(environ or {}),
            "BOXLINK_STORE": self.store_url,
            "BOXLINK_NODE": "demo",
            "BOXLINK_CONFIG": str(place / "boxlink.toml"),
            "XDG_STATE_HOME": str(place / "state"),
            "XDG_CACHE_HOME": str(place / "cache"),
        }
        # What a demo that was killed left mounted goes first, or it would be deleted through it.
        end_mounts(self.data, self.boxlink)
        for path in place.iterdir():
            if path.name != _MARK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.data.mkdir()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:7.2f} s  {text}", flush=True)

    def boxlink(self, *arguments: str) -> dict[str, Any]:
        """Run a verb to its end; its JSON object."""
        done = subprocess.run(
            [*boxlink_command(), *arguments, "--json"], env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DemoError(f"boxlink {' '.join(arguments)} failed ({done.returncode}): {done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def start(self, verb: str, *arguments: str) -> None:
        """Start a daemon; its events are read as they come."""
        with _signals_wait():
            self._programs[verb] = Program(verb, [verb, *arguments], self.environ, self.place / f"{verb}.err")

    def start_proxy(self, port: int) -> None:
        """On the wished port, or on a free one when that is taken."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                port = 0
        self.start(
            "proxy",
            *("--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", "--poll", "0.5", "--allow", "127.0.0.0/8"),
        )
        ready = self.wait_event("proxy", "ready")
        self.port = int(str(ready["listen"]).rpartition(":")[2])

    def wait_event(self, verb: str, event: str) -> dict[str, Any]:
        try:
            return self._programs[verb].wait_event(event)
        except ProgramError as error:
            raise DemoError(str(error)) from error

    def find_event(self, verb: str, event: str) -> dict[str, Any] | None:
        return self._programs[verb].find(event)

    def wait_for(self, is_true: Callable[[], bool], what: str, verb: str, seconds: float = WAIT_S) -> None:
        deadline = time.monotonic() + seconds
        while not is_true():
            self._check(verb)
            if time.monotonic() > deadline:
                raise DemoError(f"waited {seconds:.0f} s in vain: {what}")
            time.sleep(0.02)

    def _check(self, verb: str) -> None:
        try:
            self._programs[verb].check()
        except ProgramError as error:
            raise DemoError(str(error)) from error

    def log_lines(self) -> list[str]:
        """What `boxlink logs` prints now."""
        done = subprocess.run(
            [*boxlink_command(), "logs"], env=self.environ, capture_output=True, text=True, check=False
        )
        return done.stdout.splitlines()

    def fetch(self, path: str, port: int = 0) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a path through the proxy, or of what listens on ``port``; redirects are not
        followed."""
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.port}{path}")
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()
        except OSError as error:
            return 0, {}, str(error).encode()

    def status(self, path: str) -> int:
        return self.fetch(path)[0]

    def wait(self) -> None:
        """Until somebody interrupts, or a program ends by itself."""
        while True:
            for verb in self._programs:
                self._check(verb)
            time.sleep(0.5)

    def stop(self) -> bool:
        """End all, the newest first, each with time to drain; whether every one ended with 0.

        A Ctrl-C meanwhile waits no longer: what is left is killed, for nothing may outlive the demo.
        """
        try:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self.say("stopping")
            codes = [self._end(program) for program in reversed(self._programs.values())]
            end_mounts(self.data, self.boxlink)
            return not any(codes)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for program in self._programs.values():
                program.kill()
            with contextlib.suppress(DemoError):
                end_mounts(self.data, self.boxlink)
            return False
        except DemoError as error:
            print(f"demo: {error}", file=sys.stderr)
            return False

    def _end(self, program: Program) -> int | None:
        program.terminate()
        code = program.wait(_STOP_S)
        if code is None:
            print(f"demo: boxlink {program.name} did not stop; it is killed", file=sys.stderr)
            program.kill()
        return program.process.returncode


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A wish to end that comes meanwhile is heard afterwards: a program half started would be known to no one."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: came.append(got))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None
