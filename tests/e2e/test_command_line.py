"""The command as scripts see it: one JSON object, exit codes by kind, imports that a short verb does not pay for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

BOXLINK = str(Path(sys.executable).parent / "boxlink")


class Machine:
    """A home of its own, and one store."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "BOXLINK_STORE": f"file://{place}/store",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def run(self, *words: str, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [BOXLINK, *words],
            env={**self.environ, **environ},
            cwd=self.place,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, code: int = 0, **environ: str) -> dict[str, Any]:
        """The one object that a verb prints."""
        lines = self.run(*words, "--json", code=code, **environ).stdout.splitlines()
        assert len(lines) == 1, lines
        found: dict[str, Any] = json.loads(lines[0])
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "covers/sub").mkdir(parents=True)
    (tmp_path / "covers/a.txt").write_text("hello\n")
    (tmp_path / "covers/sub/b").write_text("b" * 5000)
    return Machine(tmp_path)


@pytest.fixture
def published(machine: Machine) -> Machine:
    machine.run("init")
    machine.run("publish", "covers", "covers")
    return machine


COSTS = {"bytes_up", "bytes_down", "requests", "usd", "seconds"}
WHOLE = {"seq", "digest", "files", "bytes"} | COSTS


def test_every_verb_prints_one_object(machine: Machine) -> None:
    assert machine.json("init").keys() >= COSTS
    first = machine.json("publish", "covers", "covers")
    assert first.keys() >= WHOLE | {"added", "changed", "deleted", "skipped"}
    assert (first["seq"], first["files"], first["bytes"], first["added"]) == (1, 2, 5006, 3)
    (machine.place / "covers/a.txt").write_text("hello again\n")
    second = machine.json("publish", "covers", "covers")
    assert (second["seq"], second["changed"], second["requests"]["put"]) == (2, 1, 3)
    assert machine.json("restore", "covers", "out").keys() >= WHOLE
    assert machine.json("restore", "covers", "new", "--dry-run")["fetch_requests"] == 2
    listed = machine.json("ls", "covers")
    assert listed.keys() >= WHOLE
    assert [entry["path"] for entry in listed["entries"]] == ["a.txt", "sub"]
    assert machine.json("log", "covers")["seqs"] == [1, 2]
    assert machine.json("diff", "covers", "1", "2")["changed"] == ["a.txt"]
    assert machine.json("verify", "covers", "--data")["damage"] == []
    assert machine.json("sync", "--once", "--data", "data")["errors"] == {}
    digests = {machine.json(*words)["digest"] for words in (("log", "covers"), ("restore", "covers", "out"))}
    assert digests == {second["digest"]}
    assert machine.run("cat", "covers", "a.txt", "--seq", "1").stdout == "hello\n"


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("restore", "nothing", "out"), 10, "missing"),
        (("restore", "covers", "out", "--seq", "9"), 10, "missing"),
        (("restore", "covers", "out", "--at", "2001-01-01T00:00:00Z"), 10, "missing"),
        (("restore", "covers", "out", "--at", "soon"), 2, "invalid"),
        (("cat", "covers", "nothing"), 10, "missing"),
        (("cat", "covers", "sub"), 2, "invalid"),
        (("ls", "covers", "../up"), 2, "invalid"),
        (("ls", "../covers"), 2, "invalid"),
        (("ls", "a/b"), 2, "invalid"),
        (("ls", "a\nb"), 2, "invalid"),
        (("publish", "log", "covers"), 2, "invalid"),
        (("publish", "covers", "nowhere"), 2, "invalid"),
        (("publish", "covers"), 2, "invalid"),
        (("fly",), 2, "invalid"),
        (("ls", "covers", "--store", "ftp://x"), 2, "invalid"),
    ],
)
def test_errors_have_a_kind_a_hint_and_a_code(published: Machine, words: tuple[str, ...], code: int, kind: str) -> None:
    said = published.run(*words, code=code).stderr
    assert said.startswith(f"boxlink: {kind}: ")
    if words[0] != "cat":
        assert published.json(*words, code=code)["error"]["kind"] == kind


def test_a_store_that_was_never_initialised(machine: Machine) -> None:
    for words in (("publish", "covers", "covers"), ("restore", "covers", "out"), ("log", "covers")):
        assert "boxlink init" in machine.json(*words, code=10)["error"]["hint"]
    assert "BOXLINK_STORE" in machine.json("log", "covers", code=2, BOXLINK_STORE="")["error"]["hint"]


def test_an_emptied_source_and_a_garbage_head(published: Machine) -> None:
    (published.place / "void").mkdir()
    assert published.json("publish", "covers", "void", code=2)["error"]["kind"] == "invalid"
    (published.place / "store/data/covers/head").write_bytes(b"garbage")
    error = published.json("restore", "covers", "out", code=20)["error"]
    assert (error["kind"], error["key"]) == ("corrupt", "data/covers/head")


def test_what_cannot_be_read_is_named_and_the_rest_is_published(published: Machine) -> None:
    os.mkfifo(published.place / "covers/pipe")
    (published.place / "covers/new").write_text("new")
    done = published.json("publish", "covers", "covers", code=3)
    assert (done["seq"], done["added"], done["skipped"]) == (2, 1, ["pipe"])
    assert "pipe" in published.run("publish", "covers", "covers", code=3).stderr


def test_a_damaged_pack_is_named_by_every_reader(published: Machine) -> None:
    (pack,) = (published.place / "store/data/covers/pack").iterdir()
    data = bytearray(pack.read_bytes())
    data[40] ^= 1
    pack.write_bytes(data)
    key = f"data/covers/pack/{pack.name}"
    assert published.json("restore", "covers", "out", code=20)["error"]["key"] == key
    assert key in published.run("cat", "covers", "sub/b", code=20).stderr
    assert [row["key"] for row in published.json("verify", "covers", "--data", code=20)["damage"]] == [key]


def test_an_endpoint_that_does_not_answer(machine: Machine) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    s3 = {"BOXLINK_STORE": "s3://bucket/x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", **keys}
    assert machine.json("log", "covers", code=11, **s3)["error"]["hint"]


def test_credentials_that_are_not_there(machine: Machine) -> None:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        s3 = {"BOXLINK_STORE": "s3://bucket/x", "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_REGION": "us-east-1"}
        assert machine.json("log", "covers", code=2, **s3)["error"]["kind"] == "invalid"
    finally:
        server.stop()


def test_output_into_a_closed_pipe_is_no_error(published: Machine) -> None:
    shell = f"{BOXLINK} ls covers -r | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell], env=published.environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


def test_names_with_control_characters_are_not_sent_to_a_terminal(published: Machine) -> None:
    (published.place / "covers/evil\x1b[2J").touch()
    published.run("publish", "covers", "covers")
    assert "\x1b" not in published.run("ls", "covers").stdout


def test_ctrl_c_leaves_nothing_broken(published: Machine) -> None:
    for number in range(40):
        (published.place / f"covers/big{number}").write_bytes(os.urandom(4_000_000))
    process = subprocess.Popen(
        [BOXLINK, "publish", "covers", "covers", "-q"],
        env=published.environ, cwd=published.place, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    packs = published.place / "store/data/covers/pack"
    while len(list(packs.iterdir())) < 2:
        assert process.poll() is None, "it was done before it could be interrupted"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert published.json("verify", "covers")["seq"] == 1
    assert published.json("publish", "covers", "covers")["seq"] == 2


# What only other verbs need, or the same verb when there is more to do.
HEAVY = {
    "asyncio",
    "boto3",
    "numpy",
    "obstore",
    "PIL",
    "pydantic",
    "rich",
    "starlette",
    "structlog",
    "uvicorn",
    "watchdog",
    # A pool of processes or threads.
    "concurrent.futures",
    "logging",
    "multiprocessing",
    "synclib.engine.workers",
    # Reading and packing files, collecting: of a publish of something new.
    "pyfastcdc",
    "sqlite3",
    "synclib.engine.collect",
    "synclib.engine.maintain",
    "synclib.engine.reading",
}
# Of a verb that reads one file, besides.
OF_WRITERS = {"json", "pathlib", "synclib.engine", "synclib.disk", "tempfile"}
# Of one that opens no dataset, besides.
OF_READERS = {"blake3", "msgspec", "synclib.store", "zstandard"}


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (("--version",), OF_WRITERS | OF_READERS),
        (("cat", "covers", "a.txt"), OF_WRITERS),
        (("publish", "covers", "covers"), set()),
    ],
)
def test_short_verbs_import_only_what_they_use(published: Machine, words: tuple[str, ...], unused: set[str]) -> None:
    driver = (
        "import sys; sys.argv = ['boxlink', *sys.argv[1:]]\n"
        "from tools.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", driver, *words],
        env=published.environ, cwd=published.place, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    imported = set(done.stderr.split())
    assert "click" in imported
    assert not imported & (HEAVY | unused)


@pytest.mark.parametrize(("code", "said"), [(0, ["verb", "thread", "registered"]), (7, ["verb", "registered"])])
def test_the_end_runs_what_was_registered_and_waits_for_threads_unless_it_failed(code: int, said: list[str]) -> None:
    """What they still do then may take as long as a store's deadlines."""
    driver = (
        "import atexit, threading\n"
        "from tools import cli\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    print('thread')\n"
        "def run(**_):\n"
        "    atexit.register(print, 'registered')\n"
        "    threading.Thread(target=late).start()\n"
        "    print('verb')\n"
        f"    return {code}\n"
        "cli.boxlink.main = run\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split(), done.stderr) == (code, said, "")
