"""What goes wrong at the edge of the command: interrupts at any moment, output that nobody takes, names that are made
to mislead, stores that refuse."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from synclib.clock import SystemClock
from synclib.engine.logship import LogShipper
from synclib.store.open import open_store
from tests.e2e.boxlink_process import BOXLINK, Machine, started, wait_for_end
from tests.engine.test_node import Silent
from tests.kit import Content, read_tree

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and what was published into it, to be copied."""
    place = tmp_path_factory.mktemp("published")
    machine = Machine(place)
    machine.run("init")
    (place / "source").mkdir()
    (place / "source/a").write_bytes(b"1")
    machine.run("publish", "covers", "source")
    return place


@pytest.fixture
def machine(tmp_path: Path, published: Path) -> Machine:
    for name in ("store", "source"):
        shutil.copytree(published / name, tmp_path / name)
    return Machine(tmp_path)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def large_tree(seed: int) -> Content:
    entropy = random.Random(seed)
    small: Content = {b"%03d" % number: entropy.randbytes(20_000) for number in range(200)}
    return {**small, **{b"large%d" % number: entropy.randbytes(18 << 20) for number in range(3)}}


def write(directory: Path, content: Content) -> None:
    for path, value in content.items():
        assert isinstance(value, bytes)
        (directory / os.fsdecode(path)).write_bytes(value)


@pytest.mark.parametrize("verb", ["publish", "restore"])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_work(machine: Machine, verb: str, signal_number: signal.Signals) -> None:
    """To the whole group, as a terminal (or a supervisor) sends it: 130 (143), no traceback, no process left over, the
    next run completes."""
    entropy = random.Random(f"{verb} {signal_number}")
    source, out = machine.place / "source", machine.place / "out"
    write(source, large_tree(1))
    (source / "a").unlink()
    if verb == "restore":
        machine.run("publish", "covers", source)
    words = {"publish": ("publish", "covers", source), "restore": ("restore", "covers", out)}[verb]
    begun = {
        "publish": lambda: set((machine.place / "store/data/covers").glob("pack/*")) != packs,
        "restore": lambda: (out / ".boxlink/lock").exists() and (out / ".boxlink/lock").read_bytes() != before,
    }[verb]
    interrupted = 0
    for _ in range(4):
        before = (out / ".boxlink/lock").read_bytes() if (out / ".boxlink/lock").exists() else b""
        packs = set((machine.place / "store/data/covers").glob("pack/*"))
        with started(machine, *words, "--json") as process:
            wait_until(lambda: begun() or process.poll() is not None)
            try:
                process.wait(entropy.uniform(0, 0.3))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal_number)
            out_text, err = process.communicate(timeout=60)
            assert process.returncode in (0, 128 + signal_number), (out_text, err)
            assert b"Traceback" not in err, err.decode()
            assert wait_for_end(process.pid) == set()
            said = json.loads(out_text)
            if verb == "restore":
                # What has a final name is whole, whatever ended it.
                here, right = read_tree(out) if out.exists() else {}, read_tree(source)
                assert {path: right.get(path) for path in here} == here
            if process.returncode:
                interrupted += 1
                # Where it was done already its answer is there.
                assert "error" not in said or said["error"]["kind"] == "interrupted"
            elif verb == "restore":
                # It was done already: something to do for the next.
                shutil.rmtree(out)
            else:
                write(source, large_tree(interrupted + 2))
    assert interrupted
    machine.run(*words)
    if verb == "publish":
        machine.run("restore", "covers", out)
    assert read_tree(out) == read_tree(source)
    assert machine.json("verify", "covers", "--data")["damage"] == []
    assert list((machine.place / "store/data/covers").glob("intent/*")) == []


_SIGNAL_AFTER = """
import os, signal
from tools import cli_context
emit = cli_context.Context.emit
def emitted(*words):
    emit(*words)
    os.kill(os.getpid(), signal.SIGTERM)
cli_context.Context.emit = emitted
"""


def test_a_signal_after_the_answer_leaves_one_object(machine: Machine) -> None:
    hooks = machine.place / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_SIGNAL_AFTER)
    machine.environment["PYTHONPATH"] = str(hooks)
    with started(machine, "ls", "covers", "--json") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(out)["entries"][0]["path"] == "a"
    assert b"interrupted" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_ends_in_the_middle_of_a_restore(machine: Machine, number: int) -> None:
    write(machine.place / "source", large_tree(2))
    machine.run("publish", "covers", "source")
    directory = machine.place / "data/covers"
    directory.mkdir(parents=True)
    (directory / "synch.active").touch()
    lock = directory / ".boxlink/lock"
    with started(machine, "sync", "--data", machine.place / "data", "--json") as process:
        wait_until(lambda: lock.exists() and bool(lock.read_bytes()))
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
        assert b"Traceback" not in err, err.decode()
        assert wait_for_end(process.pid) == set()
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert (events[0], events[-1]) == ("started", "stopped")
    machine.run("sync", "--data", machine.place / "data", "--once")
    assert read_tree(directory) == {b"a": b"1", **large_tree(2)}


@pytest.mark.parametrize("verb", ["ls", "logs", "diff"])
def test_a_reader_that_goes_away(machine: Machine, verb: str) -> None:
    """`boxlink … | head -1`: no error of ours, whatever is still to be said."""
    for number in range(500):
        (machine.place / "source" / ("n" * 60 + str(number))).touch()
    machine.run("publish", "covers", "source")
    ship(machine, b"line\n" * 100_000)
    words = {"ls": "ls covers", "logs": "logs", "diff": "diff covers 1 2"}[verb]
    shell = f"{BOXLINK} {words} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], env=machine.environment, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, b"", 1)


@pytest.mark.parametrize("words", ["ls covers", "ls covers --json", "log covers", "cat covers a", "log no --json"])
def test_output_that_cannot_be_written(machine: Machine, words: str) -> None:
    """On stderr, also what was to be an object on stdout."""
    shell = f"{BOXLINK} {words} > /dev/full"
    done = subprocess.run(["bash", "-c", shell], env=machine.environment, capture_output=True, check=False, timeout=60)
    kind, code = ("missing", 10) if " no " in words else ("full", 22)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.stderr.startswith(f"boxlink: {kind}: ".encode())


def ship(machine: Machine, data: bytes, name: str = "r.log") -> None:
    """Send a log up as a node does."""
    logs = machine.place / "log"
    logs.mkdir(exist_ok=True)
    (logs / name).write_bytes(data)
    store = open_store(machine.store, {})[0]
    LogShipper(logs, machine.place / "log.json", "n1", store, SystemClock(), Silent()).round(is_last=True)


def test_logs_is_one_object(machine: Machine) -> None:
    ship(machine, b"one\ntwo\n")
    found = machine.json("logs")
    assert found["lines"] == [{"stream": "n1/r.log", "line": "one"}, {"stream": "n1/r.log", "line": "two"}]
    assert found["requests"]["list"] == 1


MISLEADING = [
    ("cat", "covers", f"no{ESCAPE}"),
    ("ls", "covers", f"no{ESCAPE}"),
    ("ls", f"co{ESCAPE}"),
    ("restore", "covers", f"out{ESCAPE}", "--path", f"no{ESCAPE}"),
    ("publish", "covers", f"no{ESCAPE}"),
    ("restore", "covers", f"out{ESCAPE}"),
    ("verify", f"co{ESCAPE}"),
    ("log", "covers", "--store", f"file:///no{ESCAPE}"),
    (f"verb{ESCAPE}",),
    ("restore", "covers", b"out\xff\x9b"),
    ("publish", "covers", "source"),
    ("ls", "covers"),
    ("diff", "covers", "1", "2"),
]


@pytest.mark.parametrize("words", MISLEADING, ids=repr)
def test_no_name_reaches_a_terminal_raw(machine: Machine, words: tuple[str | bytes, ...]) -> None:
    """Neither one that somebody typed nor one out of a store."""
    (machine.place / "source" / f"evil{ESCAPE}").touch()
    machine.run("publish", "covers", "source")
    os.mkfifo(machine.place / "source" / f"pipe{ESCAPE}")
    with started(machine, *words) as process:
        out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err, err
    assert process.returncode in (0, 2, 3, 10), (process.returncode, err)
    for text in (out, err):
        assert not [byte for byte in text if byte < 32 and byte != 10], text
        assert b"\x9b" not in text
        text.decode()


def first_line_on_a_terminal(machine: Machine, *words: str) -> bytes:
    leader, follower = os.openpty()
    process = machine.start(*words, stdout=follower)
    os.close(follower)
    shown = b""
    while b"\n" not in shown:
        shown += os.read(leader, 4096)
    os.close(leader)
    process.communicate(timeout=60)
    return shown.rstrip()


def test_log_lines_reach_a_pipe_raw_and_a_terminal_shown(machine: Machine) -> None:
    ship(machine, f"{ESCAPE}line\n".encode())
    assert machine.run("logs") == f"n1/r.log: {ESCAPE}line\n".encode()
    assert first_line_on_a_terminal(machine, "logs") == rb"n1/r.log: \x1b]0;owned\x07line"


def test_a_terminal_shows_a_line_of_json_as_words(machine: Machine) -> None:
    line = b'{"event": "served", "at": "2026-11-24T08:00:00Z", "level": "warning", "role": "render", "path": "/x"}'
    ship(machine, line + b"\n")
    assert machine.run("logs") == b"n1/r.log: " + line + b"\n"
    words = b"n1/r.log: 2026-11-24T08:00:00Z warning render: served path=/x"
    assert first_line_on_a_terminal(machine, "logs") == words


def test_no_line_of_a_log_ends_the_others(machine: Machine) -> None:
    """Any program of a role writes what it likes there."""
    odd = [b'{"at": "soon"}', b"[" * 100_000, b'{"at": 5}', b'{"at": "0001-01-01T00:00:00+23:59"}', b"\xff"]
    ship(machine, b"\n".join([*odd, b'{"at": "2026-11-24T08:00:01Z"}', b'{"at": "2026-11-24T07:00:00Z"}', b""]))
    damaged = machine.place / "store/log/a/x.log/00000000000000000000"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no segment")
    told = machine.json("logs", "--since", "2026-11-24T08:00:00Z", code=20)
    lines = [row["line"] for row in told["lines"]]
    assert lines[-1] == '{"at": "2026-11-24T08:00:01Z"}'
    assert len(lines) == len(odd), "one of these says an earlier time"
    assert [error["key"] for error in told["failed"]] == ["log/a/x.log/00000000000000000000"]


@pytest.fixture
def strict_s3() -> Iterator[str]:
    """An S3 server that checks who asks."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"

    def checks_after(requests: str) -> None:
        urllib.request.urlopen(
            urllib.request.Request(
                f"{endpoint}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}, method="POST"
            ),
            timeout=10,
        ).close()

    try:
        checks_after("0")
        yield endpoint
    finally:
        checks_after("inf")
        server.stop()


@pytest.mark.parametrize("words", [("init",), ("log", "covers"), ("publish", "covers", "source")])
def test_wrong_credentials(machine: Machine, strict_s3: str, words: tuple[str, ...]) -> None:
    machine.environment |= {
        "BOXLINK_STORE": "s3://bucket/x",
        "AWS_ENDPOINT_URL": strict_s3,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    error = machine.json(*words, code=2)["error"]
    assert error["kind"] == "invalid"
    assert error["hint"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("restore", "covers", "source/a"), 2),
        (("restore", "covers", "source/a/below"), 2),
        (("restore", "covers", "/proc/nowhere"), 10),
        (("publish", "covers", "source/a"), 2),
        (("publish", "covers", "source", "--prefix", ".boxlink"), 2),
        (("publish", "covers", "source", "--prefix", "synch.down/x"), 2),
        (("publish", "covers", "source", "--prefix", "../x"), 2),
        (("publish", "..", "source"), 2),
        (("publish", "a..b", "source"), 2),
        (("publish", "synch.down", "source"), 2),
        (("publish", "", "source"), 2),
        (("publish", "x" * 200, "source"), 2),
        (("sync", "--once", "--data", "source/a"), 2),
        (("log", "covers", "--store", "file:///"), 10),
        (("log", "covers", "--store", "file://relative"), 2),
        (("log", "covers", "--store", "s3://Bad_Bucket"), 2),
    ],
)
def test_what_cannot_be_is_told(machine: Machine, words: tuple[str, ...], code: int) -> None:
    error = machine.json(*words, code=code)["error"]
    assert error["message"]
    assert machine.json("publish", "covers", "source")["seq"] == 1


def test_settings_that_do_not_read(machine: Machine) -> None:
    for text, says in (
        ("store = [", "no TOML"),
        ("store = 5", "store is 5, it has to be text in quotes"),
        ("unknown = 1", "there is no unknown; the file has store, node,"),
        ("[s3]\nregoin = 'x'", "there is no s3.regoin; [s3] has endpoint, region, profile"),
        ("gc = 3", "gc is 3, it has to be a table"),
        ("[gc]\nkeep_last = -1", "gc.keep_last is -1, it has to be at least 0"),
        ("[gc]\nkeep_last = 'x'\nkeep_daily = -1", "gc.keep_last is 'x', it has to be a whole number; gc.keep_daily"),
        ("poll_s = 0", "poll_s is 0, it has to be more than 0"),
        ("allow = 'x'", "allow is 'x', it has to be a list in brackets"),
    ):
        (machine.place / "boxlink.toml").write_text(text)
        error = machine.json("log", "covers", code=2)["error"]
        assert (error["kind"], error["path"]) == ("invalid", str(machine.place / "boxlink.toml"))
        assert says in error["message"], error
        assert "BOXLINK_CONFIG" in error["hint"]
        assert "pydantic" not in str(error)


def test_verbose_says_what_was_chosen_and_asked(machine: Machine) -> None:
    """On stderr, also of a verb that fails; the answer on stdout is the same."""
    machine.run("init")
    (machine.place / "some").mkdir()
    (machine.place / "some/a").write_bytes(b"a")
    machine.run("publish", "covers", machine.place / "some", "-q")
    for words, says in ((("ls", "covers"), "1 GET"), (("log", "nothing"), "GET")):
        process = machine.start(*words, "-v")
        out, err = process.communicate(timeout=60)
        lines = [line for line in err.decode().splitlines() if line.startswith("boxlink: ")]
        assert any("(BOXLINK_STORE)" in line and machine.store in line for line in lines), lines
        assert any(" GET, " in line and " bytes up, " in line and says.split()[-1] in line for line in lines), lines
        process = machine.start(*words)
        plain, quiet = process.communicate(timeout=60)
        assert plain == out
        assert b"bytes up" not in quiet


def test_ctrl_c_while_it_is_still_importing() -> None:
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from tools.entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_empty_path_is_refused(machine: Machine) -> None:
    for words in (("restore", "covers", "out", "--path", ""), ("publish", "covers", ".", "--prefix", "")):
        error = machine.json(*words, code=2)["error"]
        assert (error["kind"], "for all of the dataset" in error["hint"]) == ("invalid", True)
    assert not (machine.place / "out").exists()


def test_a_dry_run_says_what_it_would_cost_and_need(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(os.urandom(100_000))
    machine.run("publish", "covers", source, "-q")
    told = machine.json("restore", "covers", tmp_path / "out", "--dry-run")
    plan = told["plan"]
    assert (plan["files"], plan["bytes"], plan["need_bytes"]) == (1, 100_000, 100_000)
    assert plan["requests"] == {"get": 1, "put": 0, "list": 0, "delete": 0}
    assert plan["usd"] == 0.4e-6
    assert plan["free_bytes"] > 0
    assert not (tmp_path / "out").exists()
    shown = machine.run("restore", "covers", tmp_path / "out", "--dry-run").decode()
    assert "would fetch 1 files: 1 requests, 100.0 kB, $0.000000" in shown
    assert "needs 100.0 kB here" in shown
    assert "would write" not in shown
    assert told["would_write"] == ["a"]
    assert (told["would_delete"], plan["writes"]) == ([], 1)
    assert b"would write a\n" in machine.run("restore", "covers", tmp_path / "out", "--dry-run", "-v")
    machine.run("restore", "covers", tmp_path / "out", "-q")
    again = machine.json("restore", "covers", tmp_path / "again", "--seed", tmp_path / "out", "--dry-run")
    assert again["plan"]["files"] == 1
    again = machine.json("restore", "covers", tmp_path / "again", "--seed", tmp_path / "out")
    assert (again["fetched"], again["fetch_requests"]) == (1, 0)


@pytest.mark.parametrize(
    ("words", "code"),
    [(("cat", "covers", "a"), 2), (("ls", "covers"), 0), (("ls", "nothing"), 10), (("ls", "--json"), 0)],
)
def test_standard_output_that_is_closed(machine: Machine, words: tuple[str, ...], code: int) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", BOXLINK, *words],
        env=machine.environment, cwd=machine.place, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert bool(done.stderr) == bool(code)


def test_what_is_opened_never_becomes_standard_output() -> None:
    code = (
        "import os, sys\n"
        "for number in range(3): os.close(number)\n"
        "sys.argv = ['boxlink', '--version']\n"
        "from tools import entry\n"
        "import tools.cli\n"
        "tools.cli.main = lambda: os._exit(os.open('/', os.O_RDONLY))\n"
        "entry.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode > 2


def test_a_store_whose_directory_is_no_text(machine: Machine) -> None:
    url = b"file://" + os.fsencode(machine.place) + b"/store\xff"
    machine.run("init", "--store", url)
    assert os.path.isdir(os.fsencode(machine.place) + b"/store\xff")
    machine.run("publish", "covers", "source", "--store", url)
    assert machine.run("cat", "covers", "a", "--store", url) == b"1"
    assert machine.run("ls", "--store", url.replace(b"\xff", b"%ff")) == b"covers\n"
