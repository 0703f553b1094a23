"""The zipapp as an instance runs it: nothing but Python around it, a metadata service, a store, a release."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog import get_logger

from synclib.clock import SystemClock
from synclib.core import names
from synclib.core.release import Statement
from synclib.core.signing import Signer, private_pem
from synclib.engine.host import no_progress
from synclib.engine.logship import LogShipper, read_segment
from synclib.engine.release import publish_release, read_statement
from tests.engine.test_release import Site, content, every_kill, is_held, killed_amid_pip, said_by
from tests.imds_server import Imds, serving
from tests.tiny_wheel import write_wheel
from tools.bootstrap.build import build_bootstrap
from tools.bootstrap.cloud_init import CLOUD_CONFIG
from tools.bootstrap.command import parse
from tools.bootstrap.failure import Failure
from tools.bootstrap.links import CURRENT, linked_seq
from tools.bootstrap.log import Log
from tools.bootstrap.main import REPLACED, ROOT, TRUSTED, Options, boot
from tools.bootstrap.statement import trusted_keys
from tools.bootstrap.user_data import parse_user_data
from tools.demo.program import boxlink_command

SIGNER = Signer(private_pem(bytes(range(32))))


class Instance(Site):
    """What the publisher has, and a machine that boots."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.root, self.trusted, self.program = place / "root", place / "trusted", place / "bootstrap.pyz"
        self.trusted.mkdir()
        (self.trusted / "fleet.pub").write_text(SIGNER.public + "\n")
        self.program.write_bytes(build_bootstrap())
        (self.source / "bin/tool").write_bytes(b"small")

    def release(self, signer: Signer | None = SIGNER, bootstrap: bytes = b"") -> Statement:
        done = publish_release(self.store, None, "fleet", self.source, signer, bootstrap, self.host(), no_progress)
        return done.statement

    def user_data(self, release: str = "fleet", **more: object) -> bytes:
        told = {"store": f"file://{self.place}/store", "role": "echo", "release": release, **more}
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items()).encode()

    def run(self, *words: str, imds: Imds | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(self.program), "--root", str(self.root), "--trusted", str(self.trusted)]
        base = {"PATH": "/usr/bin:/bin", **environ}
        if imds is not None:
            base["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = imds.address
        return subprocess.run([*command, *words], env=base, capture_output=True, text=True, timeout=300, check=False)

    def log(self) -> list[dict[str, Any]]:
        path = self.root / "data/log/bootstrap.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def current(self) -> int | None:
        return linked_seq(self.root / "release/fleet", CURRENT)


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


@pytest.fixture
def imds(instance: Instance) -> Iterator[Imds]:
    with serving(Imds(user_data=instance.user_data(run=["tool", "{release}", "{data}", "word"]))) as imds:
        yield imds


def test_from_user_data_to_the_running_program(instance: Instance, imds: Imds) -> None:
    (instance.source / "bin/tool").unlink()
    write_wheel(instance.source / "wheels", "7")
    instance.release()
    done = instance.run(imds=imds)
    assert (done.returncode, done.stdout) == (0, f"7 {instance.root}/release/fleet/1 {instance.root}/data word\n")
    assert instance.current == 1
    assert imds.requests == [("PUT", "/latest/api/token"), ("GET", "/latest/user-data")]
    assert [said["event"] for said in instance.log()] == [
        "release", "fetched", "the environment is made", "switched", "starting",
    ]  # fmt: skip
    assert sorted(path.name for path in (instance.root / "release/fleet").iterdir()) == [
        "1",
        "1.json",
        "1.whole",
        "booted",
        "current",
        "lock",
    ]
    # The next boot fetches nothing.
    before = len(instance.log())
    assert instance.run(imds=imds).stdout == done.stdout
    assert [said["event"] for said in instance.log()[before:]] == ["release", "starting"]
    # A new release is for new nodes; here it comes by a channel, or by user-data that says so. The old one stays.
    write_wheel(instance.source / "wheels", "8")
    instance.release()
    assert instance.run(imds=imds).stdout == done.stdout
    imds.paths["/latest/user-data"] = instance.user_data("fleet@2", run=["tool", "{release}", "{data}", "word"])
    assert instance.run(imds=imds).stdout.startswith("8 ")
    assert linked_seq(instance.root / "release/fleet", "previous") == 1


def test_the_role_is_started_by_the_boxlink_of_the_release(instance: Instance, imds: Imds) -> None:
    (instance.source / "bin/tool").unlink()
    write_wheel(instance.source / "wheels", "7", program="boxlink")
    instance.release()
    imds.paths["/latest/user-data"] = instance.user_data("fleet@1")
    release, data = f"{instance.root}/release/fleet/1", f"{instance.root}/data"
    assert instance.run(imds=imds).stdout == f"7 up echo --data {data} --release {release}\n"


def test_the_verb_does_the_same(instance: Instance) -> None:
    statement = instance.release(None)
    told = instance.place / "node.toml"
    told.write_bytes(instance.user_data(sha256=statement.boot_sha256, run=["echo", "{release}"]))
    boxlink = [str(Path(sys.executable).parent / "boxlink"), "bootstrap"]
    words = ["--user-data", str(told), "--root", str(instance.root), "--trusted", str(instance.trusted)]
    done = subprocess.run([*boxlink, *words], capture_output=True, text=True, check=True)
    assert done.stdout == f"{instance.root}/release/fleet/1\n"
    subprocess.run([*boxlink, "--write", str(instance.place / "b.pyz")], check=True, capture_output=True)
    assert (instance.place / "b.pyz").read_bytes() == build_bootstrap()
    snippet = subprocess.run([*boxlink, "--cloud-init"], check=True, capture_output=True, text=True).stdout
    assert snippet == CLOUD_CONFIG
    assert len(snippet.encode()) < 16 << 10


def written(config: str) -> dict[str, dict[str, str]]:
    """What cloud-init writes, by path. That it reads it at all: a first line, and YAML of nothing but known keys."""
    assert config.startswith("#cloud-config\n")
    found = yaml.safe_load(config)
    assert set(found) == {"write_files", "runcmd"}
    files = {file.pop("path"): file for file in found["write_files"]}
    assert len(files) == len(found["write_files"])
    assert {tuple(sorted(file)) for file in files.values()} == {("content", "permissions")}
    assert all(isinstance(text, str) for file in files.values() for text in file.values()), "an octal number is none"
    assert found["runcmd"] == [["systemctl", "enable", "--now", "boxlink-bootstrap.service"]]
    return files


def test_the_snippet_is_what_cloud_init_and_the_bootstrap_read(tmp_path: Path) -> None:
    files = written(CLOUD_CONFIG)
    key, told, unit = files
    assert (Path(key).parent, Path(key).suffix, files[key]["permissions"]) == (TRUSTED, ".pub", "0644")
    (tmp_path / "fleet.pub").write_text(files[key]["content"].replace("# the line of fleet.key.pub", SIGNER.public))
    assert trusted_keys(tmp_path) == {SIGNER.public}
    assert files[told]["permissions"] == "0600"
    user_data = parse_user_data(files[told]["content"].encode())
    assert (user_data.store, user_data.role, user_data.release) == ("s3://bucket/prefix", "render", "fleet")
    assert unit == "/etc/systemd/system/boxlink-bootstrap.service"
    (start,) = (line for line in files[unit]["content"].splitlines() if line.startswith("ExecStart="))
    program, *words = start.removeprefix("ExecStart=").split()
    assert (program, words[0], words[1]) == ("/usr/bin/python3", "-I", str(ROOT / "bootstrap.pyz"))
    options = parse(words[2:], None)
    assert (options.user_data, options.trusted, options.root) == (Path(told), TRUSTED, ROOT)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_of_the_snippet_is_one(tmp_path: Path) -> None:
    unit = tmp_path / "boxlink-bootstrap.service"
    unit.write_text(written(CLOUD_CONFIG)[f"/etc/systemd/system/{unit.name}"]["content"])
    assert "ExecStart=" in unit.read_text()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_why_a_boot_failed_is_in_the_store(instance: Instance, imds: Imds) -> None:
    """Each time what is new; a sync that runs there later goes on behind it."""
    said = instance.root / "data/log/bootstrap.log"
    for _ in range(3):
        assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
        sent = [read_segment(instance.store, info.key) for info in instance.store.list("log/n1/bootstrap.log/")]
        assert b"".join(sent) == said.read_bytes()
    assert len(sent) == 3
    assert all(json.loads(piece)["event"] == "failed" for piece in sent)
    instance.release()
    imds.paths["/latest/user-data"] = instance.user_data(run=["true"])
    assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 0
    LogShipper(said.parent, instance.place / "ship", "n1", instance.store, SystemClock(), get_logger()).round(
        is_last=True
    )
    pieces = [read_segment(instance.store, info.key) for info in instance.store.list("log/n1/bootstrap.log/")]
    assert b"".join(pieces) == said.read_bytes()
    assert b'"starting"' in pieces[-1]


def test_the_node_of_user_data_is_the_roles_name_and_the_logs(instance: Instance, imds: Imds) -> None:
    imds.paths["/latest/user-data"] = instance.user_data(node="render-1", run=["env"])
    assert instance.run(imds=imds).returncode == 1
    [info] = instance.store.list("log/")
    assert info.key.startswith("log/render-1/bootstrap.log/")
    instance.release()
    assert "BOXLINK_NODE=render-1\n" in instance.run(imds=imds, BOXLINK_NODE="other").stdout


def test_a_machine_that_is_installed_anew_sends_its_log_behind_the_former_ones(instance: Instance, imds: Imds) -> None:
    for _ in range(2):
        assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
    former = (instance.root / "data/log/bootstrap.log").read_bytes()
    shutil.rmtree(instance.root)
    said = instance.root / "data/log/bootstrap.log"
    for noted in ("", "-1 0 0", "0 -1 0", "1e9", "9" * 30 + " 0 0", "\0"):
        if noted:
            (instance.root / "bootstrap.sent").write_text(noted)
        assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
        keys = [info.key for info in instance.store.list("log/n1/bootstrap.log/")]
        assert all(len(key.rpartition("/")[2]) == 20 and key.rpartition("/")[2].isdigit() for key in keys)
        pieces = b"".join(read_segment(instance.store, key) for key in keys)
        assert pieces.startswith(former)
        assert said.read_bytes().splitlines()[-1] in pieces


def test_what_was_not_sent_of_a_log_that_is_begun_anew_is_sent_first(instance: Instance, imds: Imds) -> None:
    said = instance.root / "data/log/bootstrap.log"
    assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
    with said.open("ab") as file:
        file.write(b"the store was away\n" * 250_000)
    former = said.read_bytes()
    for _ in range(2):
        assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
        sent = [read_segment(instance.store, info.key) for info in instance.store.list("log/n1/bootstrap.log/")]
        assert b"".join(sent) == former + said.read_bytes()
    assert said.with_name("bootstrap.log.1").read_bytes() == former


def test_a_log_that_is_a_link_is_not_sent(instance: Instance, imds: Imds) -> None:
    secret, log = instance.place / "secret", instance.root / "data/log/bootstrap.log"
    secret.write_text("hunter2")
    log.parent.mkdir(parents=True)
    log.symlink_to(secret)
    assert instance.run(imds=imds, BOXLINK_NODE="n1").returncode == 1
    assert list(instance.store.list("log/")) == []


def test_a_store_that_is_not_mounted_is_not_made(instance: Instance, imds: Imds) -> None:
    away = (instance.place / "store").rename(instance.place / "away")
    assert instance.run(imds=imds).returncode == 1
    assert not (instance.place / "store").exists()
    away.rename(instance.place / "store")


class TestRefused:
    """Nothing that is neither pinned nor signed by a trusted key runs, or is even unpacked."""

    def refused(self, instance: Instance, why: str, *words: str, imds: Imds | None = None, **environ: str) -> None:
        done = instance.run(*words, imds=imds, **environ)
        assert done.returncode == 1, done
        assert why in done.stderr
        assert "Traceback" not in done.stderr
        assert instance.log()[-1]["event"] == "failed"
        assert why in instance.log()[-1]["why"] + instance.log()[-1]["hint"]
        assert instance.current is None
        assert not list(instance.root.glob("release/*/[0-9]*"))

    @pytest.mark.parametrize("signer", [None, Signer(private_pem(bytes(32)))])
    def test_who_is_not_trusted(self, instance: Instance, imds: Imds, signer: Signer | None) -> None:
        instance.release(signer)
        self.refused(instance, "not signed" if signer is None else "not trusted", imds=imds)

    def test_a_pin_that_is_anothers(self, instance: Instance, imds: Imds) -> None:
        instance.release()
        imds.paths["/latest/user-data"] = instance.user_data(sha256="0" * 64)
        self.refused(instance, "not the one that user-data pins", imds=imds)

    def test_bytes_that_are_not_the_signed_ones(self, instance: Instance, imds: Imds) -> None:
        instance.release()
        path = instance.place / "store" / names.boot_key("fleet", 1)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        done = instance.run(imds=imds)
        assert done.returncode == 1
        assert "is not what was promised" in done.stderr
        assert instance.current is None
        assert not (instance.root / "release/fleet/1").exists()

    def test_more_bytes_than_were_signed(self, instance: Instance, imds: Imds) -> None:
        statement = instance.release()
        with (instance.place / "store" / names.boot_key("fleet", 1)).open("ab") as file:
            file.truncate(1 << 40)
        done = instance.run(imds=imds)
        assert f"longer than {statement.boot_bytes} bytes" in done.stderr
        assert instance.current is None

    def test_a_store_without_the_release(self, instance: Instance, imds: Imds) -> None:
        self.refused(instance, "there is none", imds=imds)

    def test_hostile_user_data(self, instance: Instance, imds: Imds) -> None:
        instance.release()
        imds.paths["/latest/user-data"] = instance.user_data(password="hunter2")
        self.refused(instance, "unknown key 'password'", imds=imds)
        for node in ("../x", "a/b", "-x", "a b", "x" * 129):
            imds.paths["/latest/user-data"] = instance.user_data(node=node)
            self.refused(instance, "node is no name", imds=imds)
        imds.paths["/latest/user-data"] = instance.user_data() + b"node = 1\n"
        self.refused(instance, "node is no text", imds=imds)
        imds.paths["/latest/user-data"] = instance.user_data() + b"node = " + b"9" * 5000
        self.refused(instance, "is no TOML", imds=imds)
        imds.paths["/latest/user-data"] = b"#" * (17 << 10)
        self.refused(instance, "longer than 16384 bytes", imds=imds)
        del imds.paths["/latest/user-data"]
        self.refused(instance, "there is none", imds=imds)
        assert "hunter2" not in (instance.root / "data/log/bootstrap.log").read_text()

    def test_version_1_of_the_metadata_service(self, instance: Instance) -> None:
        instance.release()
        with serving(Imds(user_data=instance.user_data(run=["true"]), has_v1=True, has_v2=False)) as imds:
            self.refused(instance, "gives no token", imds=imds)
            assert {method for method, _ in imds.requests} == {"PUT"}
            assert instance.run("--imds", "v1", imds=imds).returncode == 0
            assert instance.current == 1

    def test_options(self, instance: Instance) -> None:
        for words in (["--nosuch"], ["--imds", "v3"], ["--root"], ["word"]):
            assert instance.run(*words).returncode == 2


class TestNewerBootstrap:
    def newer(self) -> bytes:
        """The same program with another comment in its archive (PKZIP's end record): another hash."""
        data = build_bootstrap()
        return data[:-2] + b"\x05\x00newer"

    def test_it_goes_on_once(self, instance: Instance, imds: Imds) -> None:
        newer = self.newer()
        instance.release(bootstrap=newer)
        imds.paths["/latest/user-data"] = instance.user_data(run=["env"])
        done = instance.run(imds=imds)
        assert done.returncode == 0, done.stderr
        assert [said["event"] for said in instance.log()] == [
            "release", "a newer bootstrap goes on", "release", "fetched", "switched", "starting",
        ]  # fmt: skip
        name = f"bootstrap-{hashlib.sha256(newer).hexdigest()[:16]}.pyz"
        assert (instance.root / name).read_bytes() == newer
        # The role is not told, or it would never be replaced again at the next boot.
        assert REPLACED not in done.stdout

    def test_never_in_a_loop(self, instance: Instance, imds: Imds) -> None:
        """Whoever may sign could name another one each time; the one that was started goes on."""
        instance.release(bootstrap=self.newer())
        imds.paths["/latest/user-data"] = instance.user_data(run=["true"])
        assert instance.run(imds=imds, **{REPLACED: "1"}).returncode == 0
        assert "a newer bootstrap goes on" not in [said["event"] for said in instance.log()]

    def test_not_without_a_signature(self, instance: Instance, imds: Imds) -> None:
        statement = instance.release(None, bootstrap=self.newer())
        imds.paths["/latest/user-data"] = instance.user_data(sha256=statement.boot_sha256, run=["true"])
        assert instance.run(imds=imds).returncode == 0
        assert "a newer bootstrap goes on" not in [said["event"] for said in instance.log()]

    def test_not_one_that_is_not_the_signed_one(self, instance: Instance, imds: Imds) -> None:
        instance.release(bootstrap=self.newer())
        instance.store.put(names.bootstrap_key("fleet"), b"import os; os.abort()")
        imds.paths["/latest/user-data"] = instance.user_data(run=["true"])
        assert instance.run(imds=imds).returncode == 0
        assert instance.log()[1]["level"] == "warning"
        assert instance.current == 1


def test_killed_at_every_change(instance: Instance) -> None:
    """From nothing, and with a release that runs: what `current` names is whole, and the next boot ends it. The second
    brings a wheel: also around each program that is started for it."""
    first = instance.release()
    told = instance.place / "node.toml"
    told.write_bytes(instance.user_data())
    options = Options(instance.root, told, instance.trusted, is_run=False)

    def work() -> None:
        boot(options, Log(instance.root / "data/log/bootstrap.log"))

    expected = content(instance.source)
    for _ in every_kill(work):
        if instance.current is not None:
            assert content(instance.root / "release/fleet/current") == expected
    assert instance.current == first.seq
    instance.change("2")
    write_wheel(instance.source / "wheels", "2")
    second = instance.release()
    for number in every_kill(work):
        seq = instance.current
        assert seq in (first.seq, second.seq)
        assert content(instance.root / f"release/fleet/{first.seq}") == expected
        if seq == second.seq:
            assert content(instance.root / "release/fleet/current") == content(instance.source)
            assert said_by(instance.root / "release/fleet/current") == b"2\n"
            if number % 2:
                break
    work()
    assert instance.current == second.seq
    assert said_by(instance.root / "release/fleet/current") == b"2\n"


def test_killed_amid_pip_the_next_boot_waits_until_that_writes_no_more(instance: Instance) -> None:
    write_wheel(instance.source / "wheels", "1")
    instance.release()
    told = instance.place / "node.toml"
    told.write_bytes(instance.user_data())
    options = Options(instance.root, told, instance.trusted, is_run=False)

    def work() -> None:
        boot(options, Log(instance.root / "data/log/bootstrap.log"))

    with killed_amid_pip(work):
        assert is_held(instance.root / "release/fleet")
        assert instance.current is None
    work()
    assert said_by(instance.root / "release/fleet/current") == b"1\n"


def test_no_secret_in_log_or_console(instance: Instance, imds: Imds) -> None:
    instance.release()
    keys = {
        "AWS_ACCESS_KEY_ID": "AKIDAKID",
        "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
        "AWS_SESSION_TOKEN": "tokentoken",
    }
    imds.paths["/latest/user-data"] = instance.user_data(store="s3://bucket/prefix")
    # Nobody listens there: every try fails and is said.
    done = instance.run(imds=imds, AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys)
    assert done.returncode == 1
    said = done.stdout + done.stderr + (instance.root / "data/log/bootstrap.log").read_text()
    assert "ConnectionRefusedError" in said
    assert not any(secret in said for secret in (*keys.values(), *imds.tokens))


def test_what_is_not_needed_is_not_imported(instance: Instance, imds: Imds) -> None:
    """Until the store was first asked: the modules that take long."""
    imds.paths["/latest/user-data"] = instance.user_data()
    command = [sys.executable, "-I", "-X", "importtime", str(instance.program), "--root", str(instance.root)]
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.address}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert "there is none" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "http.client" in imported
    assert not imported & {"tarfile", "subprocess", "argparse", "urllib.request", "asyncio", "ctypes", "zipfile"}


def test_statement_of_another_seq_is_not_taken(instance: Instance) -> None:
    instance.release()
    instance.change("2")
    instance.release()
    old = instance.get(names.statement_key("fleet", 1))
    instance.store.put(names.statement_key("fleet", 2), old)
    told = instance.place / "node.toml"
    told.write_bytes(instance.user_data("fleet@2"))
    with pytest.raises(Failure, match="wrong seq"):
        boot(Options(instance.root, told, instance.trusted, is_run=False), Log(instance.place / "log"))
    assert read_statement(instance.store, "fleet", None).seq == 2
    assert os.listdir(instance.trusted) == ["fleet.pub"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no TOML", 2),
        ('store = "file:///nowhere"\nrole = "r"\nrelease = "fleet"\nsecret = "x"\n', 2),
        ('store = "file:///nowhere"\nrole = "r"\nrelease = "fleet"\n', 10),
    ],
)
def test_the_verb_says_what_kind_of_failure_it_is(tmp_path: Path, text: str, code: int) -> None:
    told = tmp_path / "node.toml"
    told.write_text(text)
    words = ["bootstrap", "--user-data", str(told), "--root", str(tmp_path / "root"), "--no-run", "--json"]
    done = subprocess.run([*boxlink_command(), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["error"]["message"]
