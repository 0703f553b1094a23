"""`boxlink status --fleet` as an operator runs it, over what real nodes and a render server have written."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.test_upgrade import ROLE, Rolled
from tests.fleet import Fleet, until
from tests.pictures import small_wall
from tests.render_site import fetch
from tools.demo.program import boxlink_command
from tools.fleet.local_nodes import nodes, remove, stop
from tools.lazy_probe import why_not_lazy

_SYNC = '["boxlink", "sync",'


class Watched(Rolled):
    """Two nodes: a render server's and a proxy's."""

    def of(self, node: str) -> dict[str, Any]:
        """What `--json` says of one."""
        (found,) = (one for one in self.boxlink("status", "--fleet")["nodes"] if one["node"] == node)
        return dict(found)

    def status(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*boxlink_command(), "status", "--fleet", *words],
            env=self.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def alarms(self, *words: str, code: int = 3) -> str:
        """What `--check` says, as an exit code and its one line."""
        return str(self.boxlink("status", "--fleet", "--check", *words, code=code)["error"]["message"])

    def sync_of(self, node: str) -> int:
        """The process that syncs on a node, as its `up` said when it started it."""
        (found,) = (one for one in nodes(self.place) if one.node == node)
        events = [json.loads(line) for path in (found.data / "log").glob("up-*.log") for line in path.open()]
        return int([said["pid"] for said in events if (said["event"], said.get("process")) == ("started", "sync")][-1])

    def close(self) -> None:
        for node in nodes(self.place):
            stop(node, 0)
            remove(node)


@pytest.fixture
def watched(fleet: Fleet) -> Iterator[Watched]:
    """A node of a signed release that mounts where this machine can, one of a proxy; both have said how they do."""
    watched = Watched(fleet)
    assert _SYNC in ROLE
    roles, key = fleet.root / "release/roles", fleet.root / "fleet.key"
    roles.mkdir(parents=True)
    (roles / "render.toml").write_text(ROLE.replace(_SYNC, f'{_SYNC} "--lazy",'))
    try:
        fleet.publish(small_wall(5))
        watched.boxlink("release", "key", str(key))
        watched.boxlink("release", "publish", "fleet", str(roles.parent), "--key", str(key))
        trusted = ("--release", "fleet", "--trust", f"{key}.pub")
        watched.boxlink("launch", "render", "--local", str(watched.place), "--count", "1", *trusted)
        watched.boxlink("launch", "proxy", "--local", str(watched.place), "--count", "1")
        (render,) = (node for node in nodes(watched.place) if node.role == "render")
        until(lambda: fleet.registrations() and (fleet.store / "node/proxy-1").exists(), "both say how they do")
        until(lambda: all(any((fleet.store / f"log/{node}").glob("*")) for node in watched.names()), "logs go up")
        until(lambda: watched.of("render-1")["status"]["seq"] == {"covers": 1}, "covers is there")
        for _ in range(7):
            assert fetch(render.ports["listen"], "/wall.json").status == 200
            assert fetch(render.ports["listen"], "/tiles/now/0/0/0.jpg").status in (302, 307, 404)
        yield watched
    finally:
        watched.close()


def test_all_that_is_known_of_each_node_and_one_that_lags(watched: Watched) -> None:
    def requests() -> int:
        return sum(int(one["requests"]) for one in watched.of("render-1")["registrations"].values())

    until(lambda: requests() >= 7, "its registration says how many requests it answered")
    until(lambda: watched.of("render-1")["status"]["mode"], "how its dataset is there")
    mode = r"eager \([^)]+\)" if why_not_lazy(watched.fleet.root) else r"lazy [0-9]+ %( \([^)]+\))?"
    shown = watched.status("--check")
    lines = shown.splitlines()
    assert re.fullmatch(r"  proxy-1, proxy, (proxy: \d+ requests, 0 errors, )?[0-9.]+ \w+ free, \d+ s ago", lines[0]), (
        shown
    )
    row = (
        rf"  render-1, render, fleet@1, covers seq 1 {mode}, [0-9.]+ \w+ free, \d+ s ago, "
        r"proxy/127\.0\.0\.1\.p\d+ active: (\d+) requests, 0 errors"
    )
    found = re.fullmatch(row, lines[2])
    assert found is not None, shown
    assert int(found[found.lastindex or 1]) >= 7
    # The last log line of each, in words.
    for said in (lines[1], lines[3]):
        assert re.match(r"      \d{4}-\d\d-\d\dT[^ ]+ \S", said), shown
        assert "{" not in said
    answer = watched.boxlink("status", "--fleet", "--check")
    assert answer["alarms"] == []
    assert [node["node"] for node in answer["nodes"]] == ["proxy-1", "render-1"]
    one = answer["nodes"][1]
    assert (one["status"]["role"], one["status"]["release"], one["lag"]) == ("render", "fleet@1", {"covers": 0})
    assert 0 < one["status"]["disk_free_bytes"] <= one["status"]["disk_bytes"]
    # A built-in role's sync can be asked itself.
    (proxy,) = (node for node in nodes(watched.place) if node.role == "proxy")
    assert fetch(proxy.ports["sync_admin"], "/healthz").json()["is_advancing"] is True
    assert b"boxlink_sync_start_time_seconds" in fetch(proxy.ports["sync_admin"], "/metrics").data
    # One that does not come after.
    sync = watched.sync_of("render-1")
    os.kill(sync, signal.SIGSTOP)
    try:
        for count in (6, 7):
            watched.fleet.publish(small_wall(count))
        assert "covers seq 1 (2 behind)" in watched.status("--check"), "so much it may be by default"
        assert watched.alarms("--lag-max", "1") == "1 alarms, the first: render-1: covers is 2 seqs behind"
        shown = watched.status("--check", "--lag-max", "1", code=3)
        assert "\n! render-1" in shown
        assert "\n1 alarm:\n  render-1: covers is 2 seqs behind\n" in shown
        assert "1 alarm:" in watched.status("--lag-max", "1"), "without --check it is told, and no failure"
    finally:
        os.kill(sync, signal.SIGCONT)
    until(lambda: watched.of("render-1")["lag"] == {"covers": 0}, "it comes after")
    watched.status("--check", "--lag-max", "1")


def test_errors_silence_and_a_store_that_is_away_are_alarms(watched: Watched) -> None:
    (found,) = (node for node in nodes(watched.place) if node.node == "render-1")
    (found.data / "nosuch").mkdir()
    (found.data / "nosuch/synch.active").touch()
    until(lambda: watched.of("render-1")["alarms"], "it says what is wrong")
    assert watched.alarms().startswith("1 alarms, the first: render-1: nosuch: missing: ")
    # And what nobody can read, by its key.
    (watched.fleet.store / "node/strange").write_text("{")
    assert watched.alarms().startswith("2 alarms")
    assert "\n  node/strange: " in watched.status()
    (watched.fleet.store / "node/strange").unlink()
    (found.data / "nosuch/synch.active").unlink()
    until(lambda: not watched.of("render-1")["alarms"], "it is asked for no more")
    # One that ended in order is no alarm, one that says nothing is.
    known = {node.node: node for node in nodes(watched.place)}
    stop(known["proxy-1"], 30)
    assert ", stopped\n" in watched.status("--check")
    os.kill(known["render-1"].pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{known['render-1'].pid}"), "it is gone")
    watched.status("--check")
    # What it said last, once a hundred seconds have gone by.
    path = watched.fleet.store / "node/render-1"
    said = json.loads(path.read_text())
    said["at"] = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
    path.write_text(json.dumps(said))
    assert re.fullmatch(r"1 alarms, the first: render-1: it has said nothing for 1\d\d s", watched.alarms())
    # Nobody knows how they do.
    away = watched.fleet.store.rename(watched.fleet.root / "away")
    try:
        done = subprocess.run(
            [*boxlink_command(), "status", "--fleet", "--check", "--json"],
            env=watched.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        away.rename(watched.fleet.store)
    assert done.returncode in (10, 11)
    assert set(json.loads(done.stdout)) >= {"error"}


@pytest.mark.parametrize("words", [["--check"], ["--watch"], ["--fleet", "--watch", "--check"]])
def test_what_would_never_alarm_is_refused(fleet: Fleet, words: list[str]) -> None:
    assert Rolled(fleet).boxlink("status", *words, code=2)["error"]["kind"] == "invalid"


def test_it_is_watched_on_a_terminal(watched: Watched) -> None:
    with terminal([*boxlink_command(), "status", "--fleet", "--watch"], watched.environ) as (process, screen):
        first = screen.read_until(r"\d\d:\d\d:\d\d\r\n[! ] proxy-1.*render-1, render, fleet@1, covers seq 1 ")
        assert "\x1b[2J" in first, "on a screen that was cleared"
        sync = watched.sync_of("render-1")
        watched.fleet.publish(small_wall(6))
        screen.read_until(r"render-1, render, fleet@1, covers seq 2 ")
        away = watched.fleet.store.rename(watched.fleet.root / "away")
        screen.read_until(r"does not answer|no node has said anything")
        away.rename(watched.fleet.store)
        screen.read_until(r"render-1, render, fleet@1, covers seq 2 ")
        assert sync == watched.sync_of("render-1")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert "Traceback" not in screen.text


class Screen:
    """What a program writes to its terminal."""

    def __init__(self, descriptor: int) -> None:
        self.text = ""
        self._descriptor, self._seen = descriptor, 0

    def read_until(self, pattern: str) -> str:
        """What came since the last match, as soon as the pattern is in it."""
        limit = time.monotonic() + 60
        while not (found := re.search(pattern, self.text[self._seen :], re.DOTALL)):
            assert time.monotonic() < limit, (pattern, self.text)
            self.text += os.read(self._descriptor, 65536).decode(errors="replace")
        start, self._seen = self._seen, self._seen + found.end()
        return self.text[start : self._seen]


@contextlib.contextmanager
def terminal(command: list[str], environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Screen]]:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, env={**environ, "TERM": "xterm"}, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    try:
        yield process, Screen(leader)
    finally:
        process.kill()
        process.wait()
        os.close(leader)
