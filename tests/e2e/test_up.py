"""`boxlink up` with real processes: order, restarts, logs, signals, and what is left after a kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.boxlink_process import Machine, end_session, members, wait_for_end

WAIT_S = 30.0
STOPPABLE = """
import signal, sys, time
def end(*_):
    print("draining", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGHUP, lambda *_: print("hung up", flush=True))
print("runs", *sys.argv[1:], flush=True)
while True:
    time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
print("runs", flush=True)
while True:
    time.sleep(60)
"""


class Up:
    """A running ``boxlink up``, and the events that it says."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # a program that is no boxlink says what it likes
                self.events.append(json.loads(line))

    def all(self, event: str, **fields: object) -> list[dict[str, Any]]:
        wanted = {"event": event, **fields}
        return [said for said in list(self.events) if wanted.items() <= said.items()]

    def wait(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        until(lambda: len(self.all(event, **fields)) >= count or self.process.poll() is not None)
        found = self.all(event, **fields)
        assert len(found) >= count, (event, fields, self.events)
        return found[count - 1]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        self._thread.join(WAIT_S)
        return code


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "stoppable.py").write_text(STOPPABLE)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return Machine(tmp_path)


@contextlib.contextmanager
def up(machine: Machine, *words: object) -> Iterator[Up]:
    process = machine.start("up", *words, "--json", stderr=subprocess.DEVNULL)
    running = Up(process)
    try:
        yield running
    finally:
        for said in running.all("started"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(said["pid"], signal.SIGKILL)
        end_session(process)


def role(machine: Machine, *processes: tuple[str, list[str], float], values: str = "") -> Path:
    texts = [
        f"[[process]]\nname = {json.dumps(name)}\nrun = {json.dumps(run)}\nstop_s = {stop_s}\n"
        for name, run, stop_s in processes
    ]
    path = machine.place / "both.toml"
    path.write_text(f'role = "both"\n[values]\n{values}\n' + "".join(texts))
    return path


def script(machine: Machine, name: str, *words: str) -> list[str]:
    return ["python3", str(machine.place / name), *words]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_starts_in_order_and_stops_in_the_other(machine: Machine) -> None:
    path = role(
        machine,
        ("first", script(machine, "stoppable.py", "{data}", "{word}", "{node}"), 20),
        ("second", script(machine, "stoppable.py"), 20),
        values='word = "one"',
    )
    with up(machine, path, "--set", "word=two", "--data", "d") as running:
        line = running.wait("output", process="first")["line"]
        assert line == f"runs {machine.place}/d two n1"
        running.wait("output", process="second", line="runs")
        assert [said["process"] for said in running.all("started")] == ["first", "second"]
        assert running.end() == 0
    story = [(said["event"], said.get("process")) for said in running.events if said["event"] in ("stopping", "ended")]
    assert story == [("stopping", "second"), ("ended", "second"), ("stopping", "first"), ("ended", "first")]
    assert (machine.place / "d/log/both-first.log").read_text() == f"{line}\ndraining\n"
    assert (machine.place / "d/log/both-second.log").read_text() == "runs\ndraining\n"


def test_a_process_that_ends_by_the_signal_that_asked_it_to_is_told_so(machine: Machine) -> None:
    """Also where it says that by its exit code, as shells do."""
    waits = "echo runs; while :; do sleep 0.05; done"
    path = role(machine, ("a", ["sh", "-c", f'trap "exit 143" TERM; {waits}'], 20), ("b", ["sh", "-c", waits], 20))
    with up(machine, path) as running:
        running.wait("output", 2, line="runs")
        assert running.end() == 0
    assert [said.get("signal") for said in running.all("ended")] == ["SIGTERM", "SIGTERM"]


def test_lines_stand_behind_their_names(machine: Machine) -> None:
    path = role(machine, ("a", script(machine, "stoppable.py", "\x1b[31m"), 20), ("longer", ["sleep", "600"], 20))
    process = machine.start("up", path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a      | runs \\x1b[31m\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
        assert process.stdout.read() == b"a      | draining\n"
    finally:
        end_session(process)


def test_one_that_ends_is_started_again_later_and_later(machine: Machine) -> None:
    path = role(
        machine, ("brief", ["sh", "-c", "printf last; exit 3"], 1), ("long", script(machine, "stoppable.py"), 9)
    )
    with up(machine, path) as running:
        running.wait("ended", 3, process="brief")
        assert [said["again_in_s"] for said in running.all("ended")][:3] == [0.5, 1, 2]
        assert {said["code"] for said in running.all("ended")} == {3}
        assert len(running.all("started", process="long")) == 1
        assert running.end() == 0
    assert (machine.place / "data/log/both-brief.log").read_text().startswith("last\nlast\nlast\n")


def test_sighup_goes_to_all(machine: Machine) -> None:
    path = role(machine, ("a", script(machine, "stoppable.py"), 9), ("b", script(machine, "stoppable.py"), 9))
    with up(machine, path) as running:
        for name in "ab":
            running.wait("output", process=name, line="runs")
        running.process.send_signal(signal.SIGHUP)
        for name in "ab":
            running.wait("output", process=name, line="hung up")
        assert running.end() == 0


def test_a_users_signal_goes_to_those_that_expect_it(machine: Machine) -> None:
    """Whom it would end goes on as before."""
    trap = "trap 'echo one' USR1; trap 'echo two' USR2; echo runs; while :; do sleep 0.05; done"
    path = role(machine, ("a", ["sh", "-c", trap], 9), ("b", script(machine, "stoppable.py"), 9))
    with up(machine, path) as running:
        for name in "ab":
            running.wait("output", process=name, line="runs")
        for number, line in ((signal.SIGUSR1, "one"), (signal.SIGUSR2, "two")):
            running.process.send_signal(number)
            running.wait("output", process="a", line=line)
        assert running.end() == 0
    how = {said["process"]: said.get("signal") for said in running.all("ended")[::-1]}
    assert how == {"a": "SIGTERM", "b": None}, "each ended once, when all did"


def test_who_does_not_end_in_time_is_killed_and_that_is_said(machine: Machine) -> None:
    with up(machine, role(machine, ("a", script(machine, "stubborn.py"), 0.2))) as running:
        running.wait("output", line="runs")
        assert running.end() == 3
        assert running.all("output", line="no")
        assert running.all("killed", process="a")
        assert running.all("ended")[0]["signal"] == "SIGKILL"


def test_a_second_interrupt_kills_at_once(machine: Machine) -> None:
    processes = [(name, script(machine, "stubborn.py"), 600.0) for name in "ab"]
    with up(machine, role(machine, *processes)) as running:
        for name in "ab":
            running.wait("output", process=name, line="runs")
        running.process.send_signal(signal.SIGINT)
        running.wait("output", process="b", line="no")
        assert running.end(signal.SIGINT) == 3
        assert {said["process"] for said in running.all("killed")} == {"a", "b"}
        assert not any(is_running(said["pid"]) for said in running.all("started"))


def test_kill_9_leaves_no_process(machine: Machine) -> None:
    with up(machine, role(machine, *((name, script(machine, "stubborn.py"), 9.0) for name in "ab"))) as running:
        for name in "ab":
            running.wait("output", process=name, line="runs")
        pids = [said["pid"] for said in running.all("started")]
        running.process.kill()
        running.process.wait()
        until(lambda: not any(map(is_running, pids)))
        assert wait_for_end(running.process.pid) == set()


def test_what_a_process_leaves_in_its_group_ends_with_it(machine: Machine) -> None:
    path = role(machine, ("a", ["sh", "-c", "sleep 600 & echo $!; exit 1"], 9))
    with up(machine, path) as running:
        left = int(running.wait("output")["line"])
        running.wait("ended")
        until(lambda: not is_running(left))
        assert running.end() == 0


def test_only_one_of_a_role_on_a_data_directory(machine: Machine) -> None:
    path = role(machine, ("a", script(machine, "stoppable.py"), 9))
    with up(machine, path) as running:
        running.wait("output", line="runs")
        assert machine.json("up", path, code=13)["error"]["kind"] == "conflict"
        assert running.end() == 0
    with up(machine, path) as again:
        again.wait("output", line="runs")
        assert again.end() == 0


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_reader_that_went_away_holds_nobody_up(machine: Machine, words: list[str]) -> None:
    """The pipe is full and nobody reads it: the process writes on, and the log has it all."""
    long = "head -c 60000 /dev/zero | tr '\\0' '\\1'; echo"
    path = role(machine, ("a", ["sh", "-c", f"{long}; seq 100000; {long}; echo end; sleep 600"], 9))
    process = machine.start("up", path, *words, stderr=subprocess.DEVNULL)
    log = machine.place / "data/log/both-a.log"
    try:
        until(lambda: log.exists() and log.read_bytes().endswith(b"\nend\n"))
        assert log.read_bytes().count(b"\n") == 100_003
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        end_session(process)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nosuch"], 10, "there is no role nosuch"),
        (["../x"], 10, "there is no role"),
        (["NoSuch"], 2, "is no role"),
        (["render", "--set", "lisen=1:2"], 2, "has no value 'lisen'"),
        (["render", "--set", "data=/"], 2, "always stands for the same"),
        (["render", "--set", "listen"], 2, "sets nothing"),
        (["render", "--release", "nosuch"], 2, "there is no such release"),
        (["bad.toml"], 10, "there is no program nosuch"),
        (["unknown.toml"], 2, "stands for nothing"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    machine: Machine, words: list[str], code: int, says: str
) -> None:
    bad = '[[process]]\nname = "x"\nrun = ["nosuch"]\n'
    (machine.place / "bad.toml").write_text(f'role = "bad"\n[[process]]\nname = "y"\nrun = ["true"]\n{bad}')
    (machine.place / "unknown.toml").write_text('role = "u"\n[[process]]\nname = "y"\nrun = ["true", "{what}"]\n')
    assert says in machine.json("up", *words, code=code)["error"]["message"]
    assert not (machine.place / "data/log").exists()


def test_units_are_what_systemd_takes(machine: Machine) -> None:
    units = machine.place / "units"
    odd = role(machine, ("odd", ["sh", "-c", 'echo "a b" 100% $HOME \\'], 3))
    with odd.open("a") as file:
        file.write('environment = { PASSWORD = "a \\"b\\" %n" }\n')
    for words in (["render"], ["proxy"], [odd]):
        found = machine.json("up", *words, "--systemd", units, "--set" if words == ["render"] else "-q",
                             *(["dataset=co vers"] if words == ["render"] else []))  # fmt: skip
        assert all(Path(path).parent == units for path in found["units"])
    names = sorted(path.name for path in units.iterdir())
    assert names == [
        "boxlink-both-odd.service", "boxlink-both.target", "boxlink-proxy-proxy.service", "boxlink-proxy-sync.service",
        "boxlink-proxy.target", "boxlink-render-render.service", "boxlink-render-sync.service", "boxlink-render.target",
    ]  # fmt: skip
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(units / name) for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}, timeout=60,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "boxlink" in line]
    assert (done.returncode, ours) == (0, [])
    render = (units / "boxlink-render-render.service").read_text()
    for line in (
        "Type=notify",
        "WatchdogSec=300",
        "ProtectSystem=strict",
        "After=network-online.target boxlink-render-sync.service",
    ):
        assert f"\n{line}\n" in render
    sync = (units / "boxlink-render-sync.service").read_text()
    for line in ("FileDescriptorStoreMax=64", "NotifyAccess=all", "WatchdogSec=300", "KillMode=process"):
        assert f"\n{line}\n" in sync
    assert 'dataset "co vers"' in render
    secret = units / "boxlink-both-odd.service"
    assert secret.stat().st_mode & 0o777 == 0o600
    text = secret.read_text()
    assert '\nEnvironment="PASSWORD=a \\"b\\" %%n"\n' in text
    assert text.partition("ExecStart=")[2].split("\n")[0].endswith(' -c "echo \\"a b\\" 100%% $$HOME \\\\"')
    assert "AWS_" not in "".join((units / name).read_text() for name in names)


def test_a_release_runs_its_own_programs(machine: Machine) -> None:
    release = machine.place / "fleet/7"
    program = release / "venv/bin/boxlink"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$0 $* $BOXLINK_RELEASE"; exec sleep 600\n')
    program.chmod(0o755)
    (release / "roles").mkdir()
    (release / "roles/own.toml").write_text(
        'role = "own"\n[[process]]\nname = "a"\nrun = ["boxlink", "x", "{release}"]\n'
    )
    with up(machine, "own", "--release", release) as running:
        assert running.wait("output")["line"] == f"{program} x {release} fleet@7"
        assert running.end() == 0


def test_the_built_in_roles_serve(machine: Machine) -> None:
    """sync and render, as a user starts them, with a real dataset; drained at the end."""
    (machine.place / "source").mkdir()
    (machine.place / "source/a.txt").write_text("no cover")
    machine.run("init")
    machine.run("publish", "covers", "source")
    with up(machine, "render", "--set", "listen=127.0.0.1:0", "--set", "sync_admin=127.0.0.1:0") as running:
        until(lambda: any("ready" in said["line"] for said in running.all("output", process="render")))
        until(lambda: list((machine.place / "store").glob("proxy/*")))
        assert running.end() == 0
    assert not list((machine.place / "store/proxy").iterdir())
    assert members(running.process.pid) == set()


def test_each_line_of_boxlinks_own_stands_once_with_its_time(machine: Machine) -> None:
    """What a daemon has in its own log is shown, and not written again; what it can only say is, with the time."""
    (machine.place / "source").mkdir()
    (machine.place / "source/a.txt").write_text("no cover")
    machine.run("init")
    machine.run("publish", "covers", "source")
    render = ["boxlink", "render", "--data", "{data}", "--dataset", "covers", "--listen", "127.0.0.1:0"]
    path = role(
        machine,
        ("sync", ["boxlink", "sync", "--data", "{data}"], 20),
        ("render", render, 60),
        ("proxy", ["boxlink", "proxy", "--listen", "127.0.0.1:0"], 20),
        ("wrong", ["boxlink", "proxy", "--listen", "nowhere"], 20),
    )
    with up(machine, path) as running:
        until(lambda: any(said["line"].startswith("render: ready ") for said in running.all("output")))
        until(lambda: any(said["line"].startswith("listening on ") for said in running.all("output")))
        running.wait("ended", process="wrong")
        assert any(said["line"].startswith("boxlink: started ") for said in running.all("output", process="sync"))
        assert running.end() == 0
    machine.run("sync", "--data", "data", "--once")  # what was said last goes up, too
    lines = [json.loads(found["line"]) for found in machine.json("logs")["lines"]]
    assert [line for line in lines if "at" not in line] == []

    def all_about(text: str) -> list[str]:
        return [line["event"] for line in lines if text in line["event"]]

    assert all_about("ready") == ["ready"]
    assert all_about("draining") == ["draining"]
    assert all_about("listening on")[0].startswith("listening on 127.0.0.1:")
    assert "boxlink: invalid: --listen 'nowhere' is no address" in all_about("is no address")
    assert not all_about("boxlink: started")


def test_kill_9_leaves_no_grandchild_either_but_what_went_its_own_way(machine: Machine) -> None:
    """A shell's child, a child of that one, and one that has a session of its own, as the keepers of mounts have."""
    script_text = "sleep 600 & echo $!; sh -c 'sleep 601 & echo $!; wait' & setsid sleep 602 & sleep 0.1; echo $!; wait"
    with up(machine, role(machine, ("a", ["sh", "-c", script_text], 9))) as running:
        running.wait("output", 3)
        pids = [int(said["line"]) for said in running.all("output")]
        own_way = int(subprocess.run(["pgrep", "-nxf", "sleep 602"], capture_output=True, text=True, check=True).stdout)
        try:
            below = [pid for pid in pids if pid != own_way]
            assert all(map(is_running, (*below, own_way)))
            running.process.kill()
            until(lambda: not any(map(is_running, below)))
            assert is_running(own_way)
        finally:
            os.kill(own_way, signal.SIGKILL)


def test_a_guard_that_is_killed_changes_nothing_for_those_that_live_or_are_started(machine: Machine) -> None:
    path = role(machine, ("a", ["sh", "-c", "echo runs; exec sleep 600"], 9), ("b", ["sh", "-c", "exit 1"], 9))
    with up(machine, path) as running:
        running.wait("output", line="runs")
        found = subprocess.run(
            ["pgrep", "-P", str(running.process.pid), "-f", "tools.fleet.guard"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        os.kill(int(found.stdout), signal.SIGKILL)
        # One of them may have been started before that.
        running.wait("ended", len(running.all("ended", process="b")) + 2, process="b", code=1)
        assert len(running.all("ended", process="b")) == len(running.all("ended", process="b", code=1))
        assert is_running(running.all("started", process="a")[0]["pid"])
        assert running.end() == 0


def test_units_may_write_where_a_file_store_is(machine: Machine) -> None:
    units = machine.place / "units"

    def of(name: str) -> list[str]:
        text = (units / f"boxlink-{name}.service").read_text()
        return [line for line in text.splitlines() if line.startswith("ReadWritePaths=")]

    data = f"ReadWritePaths={machine.place}/data"
    machine.environment["BOXLINK_STORE"] = f"file://{machine.place}/a%20store"
    machine.json("up", "render", "--systemd", units)
    assert of("render-render") == [data, f'ReadWritePaths="-{machine.place}/a store"']
    assert of("render-sync") == [], "which is hardly locked down"
    machine.json("up", "render", "--systemd", units, "--store", "s3://bucket/prefix")
    assert of("render-render") == [data]
    (machine.place / "own.toml").write_text(
        'role = "own"\n[[process]]\nname = "a"\nrun = ["boxlink", "render", "--store", "file:///srv/own"]\n'
        '[[process]]\nname = "b"\nrun = ["boxlink", "render"]\n'
        'environment = { BOXLINK_STORE = "file:///srv/environment" }\n'
        '[[process]]\nname = "c"\nrun = ["boxlink", "render"]\n'
    )
    del machine.environment["BOXLINK_STORE"]
    (machine.place / "boxlink.toml").write_text('store = "file:///srv/settings"\n')
    machine.json("up", "own.toml", "--systemd", units)
    for name, directory in (("a", "own"), ("b", "environment"), ("c", "settings")):
        assert of(f"own-{name}") == [data, f"ReadWritePaths=-/srv/{directory}"]
    assert "BOXLINK_STORE=" not in (units / "boxlink-own-c.service").read_text()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(units.glob("boxlink-own*")))],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if "boxlink" in line]) == (0, [])
