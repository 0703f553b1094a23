"""Releases: what is published is what is fetched, nothing runs unsigned, and a kill anywhere is gone on from.

Kills are real: a forked process ends itself by SIGKILL at its n-th change of the store or of the disk, for every n
until one gets through, and then the same is done again without a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemClock, SystemEntropy
from synclib.core import names
from synclib.core.release import Statement
from synclib.core.signing import Signer, private_pem
from synclib.engine.host import Host, no_progress
from synclib.engine.release import Published, has_signature, publish_release, read_statement, statements
from synclib.engine.release_check import check_standing
from synclib.errors import BoxlinkError, Conflict, Corrupt, Invalid, Missing, Partial
from synclib.lazy.dataset import STORE_KEY
from synclib.store.file import FileStore
from tests.kit import PatientClock, read_tree
from tests.tiny_wheel import write_wheel
from tools.bootstrap.links import CURRENT, NEXT, PREVIOUS, is_taken_back, linked_seq
from tools.fleet.installed import note_installed
from tools.fleet.release_place import Brought, Trust, activate, fetch, pass_trial, propose, rollback, seqs
from tools.fleet.release_prune import prune
from tools.fleet.release_refused import refused

SIGNER = Signer(private_pem(bytes(range(32))))
OTHER = Signer(private_pem(bytes(32)))
TRUST = Trust({SIGNER.public})
BOOTSTRAP = b"#!python\nbootstrap"


class Site:
    """A store, a directory that becomes a release, and a machine that fetches it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.source, self.into = place / "source", place / "into"
        (place / "store").mkdir(parents=True)
        self.store.put(STORE_KEY, b"{}")
        (self.source / "roles").mkdir(parents=True)
        (self.source / "bin").mkdir()
        (self.source / "roles/echo.toml").write_text("role")
        (self.source / "bin/tool").write_bytes(os.urandom(3 << 20))
        (self.source / "bin/tool").chmod(0o755)
        (self.source / "link").symlink_to("bin/tool")

    @property
    def store(self) -> FileStore:
        """Made anew: it does not cross a fork, and what two processes draw must differ."""
        return FileStore(str(self.place / "store"), SystemClock(), SystemEntropy())

    def host(self, name: str = "publisher") -> Host:
        return Host(name, PatientClock(), SystemEntropy(), self.place / name / "state", self.place / name / "cache")

    def change(self, text: str) -> None:
        (self.source / "version").write_text(text)

    def publish(self, signer: Signer | None = SIGNER) -> Published:
        return publish_release(self.store, None, "fleet", self.source, signer, BOOTSTRAP, self.host(), no_progress)

    def fetch(self, seq: int | None = None, trust: Trust = TRUST) -> Brought:
        return fetch(self.store, None, "fleet", seq, self.into, trust, self.host("node"), no_progress)

    @property
    def here(self) -> Path:
        return self.into / "fleet"

    def get(self, key: str) -> bytes:
        found = self.store.get(key, size_max=1 << 30)
        assert found is not None
        return found.data


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def content(directory: Path) -> dict[bytes, object]:
    return {path: value for path, value in read_tree(directory).items() if path.split(b"/")[0] != b"venv"}


def unpacked(data: bytes) -> dict[str, tuple[int, bytes | str | None]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            found[member.name] = (member.mode, file.read() if file else member.linkname or None)
        return found


def test_what_was_published_is_fetched_switched_and_taken_back(site: Site) -> None:
    first = site.publish()
    assert (first.statement.seq, first.is_new, first.is_current) == (1, True, True)
    assert has_signature(first.statement)
    assert not (site.here / CURRENT).exists()
    brought = site.fetch()
    assert (brought.directory, brought.is_new) == (site.here / "1", True)
    assert content(brought.directory) == content(site.source)
    assert not site.fetch().is_new
    assert activate("fleet", None, site.into, TRUST)[1]
    site.change("2")
    second = site.publish()
    assert second.statement.seq == 2
    site.fetch()
    assert linked_seq(site.here, CURRENT) == 1
    assert activate("fleet", 2, site.into, TRUST)[1]
    assert not activate("fleet", 2, site.into, TRUST)[1]
    assert (site.here / "current/version").read_text() == "2"
    assert rollback("fleet", site.into) == (1, True)
    assert not (site.here / "current/version").exists()
    assert rollback("fleet", site.into) == (1, False)
    assert seqs(site.here) == statements(site.store, "fleet") == [1, 2]
    site.fetch(1)


@pytest.fixture
def tried(site: Site) -> Site:
    """Seq 2 runs, 1 ran before, and 3 is on trial."""
    for seq in (1, 2, 3):
        site.change(str(seq))
        site.publish()
        site.fetch()
        if seq < 3:
            activate("fleet", seq, site.into, TRUST)
    propose("fleet", 3, site.into, TRUST)
    return site


def links(site: Site) -> tuple[int | None, ...]:
    return tuple(linked_seq(site.here, name) for name in (CURRENT, PREVIOUS, NEXT))


def test_a_trial_that_is_passed(tried: Site) -> None:
    assert pass_trial(tried.here, 3)
    assert links(tried) == (3, 2, None)
    assert pass_trial(tried.here, 3), "once more changes nothing"


def test_a_rollback_ends_a_trial(tried: Site) -> None:
    """What ran before is the one that is proven; what is tried does not come in its place any more."""
    assert rollback("fleet", tried.into) == (2, True)
    assert links(tried) == (2, 1, None)
    assert not pass_trial(tried.here, 3)
    assert links(tried) == (2, 1, None)
    known = refused(tried.here)
    assert (known and known.seq) == 3, "nor is it tried again"
    assert rollback("fleet", tried.into) == (1, True), "a second one goes back as always"


def test_what_a_person_activates_stands_above_a_trial(tried: Site) -> None:
    activate("fleet", 1, tried.into, TRUST)
    assert not pass_trial(tried.here, 3)
    assert links(tried) == (1, 2, None)
    propose("fleet", 3, tried.into, TRUST)
    activate("fleet", 3, tried.into, TRUST)
    assert pass_trial(tried.here, 3)
    assert links(tried) == (3, 1, None)


def test_a_newer_one_that_is_proposed_during_a_trial_stays(tried: Site) -> None:
    tried.change("4")
    tried.publish()
    tried.fetch()
    propose("fleet", 4, tried.into, TRUST)
    assert pass_trial(tried.here, 3)
    assert links(tried) == (3, 2, 4)


def test_publishing_the_same_again_changes_nothing(site: Site) -> None:
    site.publish()
    objects = {path: path.stat().st_mtime_ns for path in (site.place / "store/release").rglob("*") if path.is_file()}
    again = site.publish()
    assert not again.is_new
    assert {path: path.stat().st_mtime_ns for path in objects} == objects


def test_the_boot_tar_is_the_tree_and_a_function_of_it(site: Site) -> None:
    statement = site.publish().statement
    data = site.get(names.boot_key("fleet", 1))
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (statement.boot_sha256, statement.boot_bytes)
    found = unpacked(data)
    assert list(found) == sorted(found, key=lambda name: (name.rpartition("/")[0], name))
    assert found["bin/tool"] == (0o755, (site.source / "bin/tool").read_bytes())
    assert found["link"][1] == "bin/tool"
    assert "roles" in found
    # Made again, elsewhere, of the same tree.
    site.store.delete(names.statement_key("fleet", 1))
    site.store.delete(names.boot_key("fleet", 1))
    assert site.publish().statement.boot_sha256 == statement.boot_sha256
    assert site.get(names.boot_key("fleet", 1)) == data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        packed.read(1)
        assert packed.mtime == 0


def test_current_never_falls(site: Site) -> None:
    site.publish()
    site.change("2")
    newer = site.publish().statement
    site.store.put(names.current_key("fleet"), newer.model_copy(update={"seq": 9}).model_dump_json().encode())
    site.change("3")
    assert not site.publish().is_current
    assert read_statement(site.store, "fleet", None).seq == 9


def test_a_current_that_cannot_be_read_is_put_right(site: Site) -> None:
    statement = site.publish().statement
    for damage in (b"", b"{", b"x" * 100_000):
        site.store.put(names.current_key("fleet"), damage)
        with pytest.raises(Corrupt):
            site.fetch()
        assert site.publish().is_current
        assert read_statement(site.store, "fleet", None) == statement


def test_publishers_beside_each_other(site: Site) -> None:
    """Each of their seqs is whole, and the newest is the current one."""
    site.publish()
    pids = []
    for name in ("one", "two", "three"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                source = site.place / name
                source.mkdir()
                for number in range(3):
                    (source / "version").write_text(f"{name} {number}")
                    publish_release(site.store, None, "fleet", source, SIGNER, BOOTSTRAP, site.host(name), no_progress)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    found = [read_statement(site.store, "fleet", seq) for seq in statements(site.store, "fleet")]
    assert read_statement(site.store, "fleet", None) == found[-1]
    for statement in found:
        assert has_signature(statement)
        data = site.get(names.boot_key("fleet", statement.seq))
        assert hashlib.sha256(data).hexdigest() == statement.boot_sha256
    assert len(found) > 3


def test_what_is_no_release_is_refused(site: Site) -> None:
    (site.source / "venv").mkdir()
    with pytest.raises(Invalid, match="brings no venv"):
        site.publish()
    (site.source / "venv").rmdir()
    empty = site.place / "empty"
    empty.mkdir()
    with pytest.raises(Invalid, match="empty directory"):
        publish_release(site.store, None, "fleet", empty, SIGNER, b"", site.host(), no_progress)
    with pytest.raises(Invalid, match="cannot be read"):
        publish_release(site.store, None, "fleet", empty / "no", SIGNER, b"", site.host(), no_progress)
    with pytest.raises(Missing, match="no release fleet"):
        site.fetch()
    assert list(site.store.list("release/")) == []


def test_a_release_that_is_not_whole_is_never_signed(site: Site) -> None:
    os.mkfifo(site.source / "pipe")
    with contextlib.suppress(Partial):
        site.publish()
    if statements(site.store, "fleet"):
        # Pipes are no part of any dataset; then what was signed is what can be published at all.
        assert "pipe" not in unpacked(site.get(names.boot_key("fleet", 1)))


class TestTrust:
    def test_who_forgets_the_key_takes_nothing_back(self, site: Site) -> None:
        site.publish()
        with pytest.raises(Invalid, match="is signed, and this would not be"):
            site.publish(None)
        assert site.fetch().statement.key

    def test_unsigned_only_when_told(self, site: Site) -> None:
        site.publish(None)
        with pytest.raises(Invalid, match="not signed"):
            site.fetch()
        assert not seqs(site.here)
        allowed = Trust(set(), is_unsigned_allowed=True)
        assert site.fetch(trust=allowed).is_new
        with pytest.raises(Invalid, match="not signed"):
            activate("fleet", 1, site.into, TRUST)
        assert activate("fleet", 1, site.into, allowed)[1]

    @pytest.mark.parametrize("is_unsigned_allowed", [False, True])
    def test_another_key_is_never_enough(self, site: Site, is_unsigned_allowed: bool) -> None:
        site.publish(OTHER)
        with pytest.raises(Invalid, match="not trusted"):
            site.fetch(trust=Trust({SIGNER.public}, is_unsigned_allowed))
        assert site.fetch(trust=Trust({SIGNER.public, OTHER.public})).is_new

    @pytest.mark.parametrize(
        "change",
        [
            {"digest": "0" * 64}, {"boot_sha256": "0" * 64}, {"boot_bytes": 7}, {"bootstrap_sha256": ""},
            {"at": "2030-01-01T00:00:00Z"}, {"signature": "0" * 128}, {"key": OTHER.public},
        ],
    )  # fmt: skip
    def test_no_field_can_be_changed(self, site: Site, change: dict[str, object]) -> None:
        forged = site.publish().statement.model_copy(update=change)
        site.store.put(names.current_key("fleet"), forged.model_dump_json().encode())
        with pytest.raises(Corrupt, match="signature is wrong"):
            site.fetch(trust=Trust({SIGNER.public, OTHER.public}, is_unsigned_allowed=True))

    def test_an_old_statement_cannot_stand_for_a_new_seq(self, site: Site) -> None:
        first = site.publish().statement
        site.change("2")
        site.publish()
        site.store.put(names.statement_key("fleet", 2), first.model_dump_json().encode())
        with pytest.raises(Corrupt, match="is of seq 1"):
            site.fetch(2)

    def test_a_signed_seq_with_others_content_is_refused(self, site: Site) -> None:
        """Whoever may write to the store publishes something else and puts the signed statement over it."""
        signed = site.publish().statement
        for info in list(site.store.list("release/fleet/")):
            site.store.delete(info.key)
        (site.source / "bin/tool").write_bytes(b"evil")
        publish_release(site.store, None, "fleet", site.source, None, b"", site.host("evil"), no_progress)
        for key in (names.current_key("fleet"), names.statement_key("fleet", 1)):
            site.store.put(key, signed.model_dump_json().encode())
        with pytest.raises(Corrupt, match="not what was signed"):
            site.fetch()
        assert not seqs(site.here)


def replace(path: Path, data: bytes) -> None:
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        (lambda top: replace(top / "bin/tool", b"x" * (3 << 20)), "bin/tool"),
        (lambda top: (top / "bin/tool").chmod(0o4755), "bin/tool"),
        (lambda top: (top / "roles/echo.toml").unlink(), "roles/echo.toml"),
        (lambda top: (top / "roles/more.toml").write_text("role"), "roles/more.toml"),
        (lambda top: (top / "more").mkdir(), "more"),
        (lambda top: ((top / "link").unlink(), (top / "link").symlink_to("/bin/sh")), "link"),
        (lambda top: ((top / "bin").rename(top.parent / "b"), (top / "bin").symlink_to(top.parent / "b")), "bin"),
    ],
)
def test_what_was_changed_here_is_not_activated(site: Site, damage: Callable[[Path], object], path: str) -> None:
    site.publish()
    top = site.fetch().directory
    damage(top)
    with pytest.raises(Corrupt) as caught:
        activate("fleet", 1, site.into, TRUST)
    assert caught.value.path == str(top / path)
    assert linked_seq(site.here, CURRENT) is None


def test_the_chain_that_is_kept_here_is_not_believed_either(site: Site) -> None:
    """Both the file and the runs beside it are changed to agree: the digest that was signed does not."""
    statement = site.publish().statement
    top = site.fetch().directory
    (site.source / "bin/tool").write_bytes(b"evil")
    other = site.publish().statement
    evil = fetch(
        site.store,
        None,
        "fleet",
        2,
        site.place / "evil",
        TRUST,
        site.host("e"),
        no_progress,
    ).directory
    state = json.loads((evil / ".boxlink/state.json").read_bytes())
    assert state["seq"] == other.seq == 2
    (evil / ".boxlink/state.json").write_text(json.dumps({**state, "seq": 1}))
    top.rename(site.place / "away")
    evil.rename(top)
    with pytest.raises(Corrupt, match="not what was signed"):
        check_standing(top, statement)


def test_paths_of_a_hostile_release_stay_inside(site: Site) -> None:
    for name in ("../x", "/etc", "a/b", "", "log", "synch.x", "..", "x\n"):
        with pytest.raises(BoxlinkError):
            fetch(site.store, None, name, None, site.into, TRUST, site.host(), no_progress)
        with pytest.raises(BoxlinkError):
            read_statement(site.store, name, 1)
    assert not site.into.exists()


def test_a_place_that_is_anothers_is_a_conflict(site: Site) -> None:
    site.publish()
    site.fetch()
    other = Site(site.place / "other")
    other.change("different")
    other.publish()
    other.into = site.into
    with pytest.raises(Conflict, match="another seq 1"):
        other.fetch()


# Audited changes (Python's table of audit events); opening to write is told by its flags.
CHANGES = {
    "subprocess.Popen",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "shutil.rmtree",
}


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether a forked process that does ``work`` was killed at its ``number``-th change before it had ended."""
    pid = os.fork()
    if pid == 0:
        left = [number]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            is_change = event in CHANGES
            if event == "open" and isinstance(arguments[2], int):
                is_change = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if is_change:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def every_kill(work: Callable[[], object]) -> Iterator[int]:
    """Yields after each kill of ``work`` at one change further on, until it gets through."""
    number = 1
    while killed_at(number, work):
        yield number
        number += 1
    assert number > 10, "nothing was killed"


def check_store(site: Site, old: Statement) -> Statement:
    """Whatever has happened: the current release is the old one or the new one, and whole."""
    current = read_statement(site.store, "fleet", None)
    assert current.seq >= old.seq
    assert has_signature(current)
    assert hashlib.sha256(site.get(names.boot_key("fleet", current.seq))).hexdigest() == current.boot_sha256
    return current


def test_publish_killed_at_every_change(site: Site) -> None:
    old = site.publish().statement
    (site.source / "bin/tool").write_bytes(b"small, so that each try is short")
    for number in every_kill(site.publish):
        check_store(site, old)
        if number % 5 == 0:
            # Something else each time, so that there is always something left to do.
            old = site.publish().statement
            site.change(str(number))
    done = site.publish().statement
    assert check_store(site, old) == done
    site.fetch()
    assert content(site.here / str(done.seq)) == content(site.source)


def said_by(release: Path) -> bytes:
    """What the program says that was installed of a release's wheel."""
    return subprocess.run([release / "venv/bin/tool"], capture_output=True, check=True).stdout


def test_fetch_and_activate_killed_at_every_change(site: Site) -> None:
    """Also around each program that is started for its wheel."""
    (site.source / "bin/tool").write_bytes(b"small, so that each try is short")
    write_wheel(site.source / "wheels", "1")
    site.publish()
    site.fetch()
    activate("fleet", 1, site.into, TRUST)
    running = content(site.here / "1")
    site.change("2")
    write_wheel(site.source / "wheels", "2")
    site.publish()

    def work() -> None:
        site.fetch()
        activate("fleet", None, site.into, TRUST)

    for _ in every_kill(work):
        seq = linked_seq(site.here, CURRENT)
        assert seq in (1, 2)
        assert content(site.here / "1") == running
        assert said_by(site.here / "1") == b"1\n"
        if 2 in seqs(site.here):
            assert content(site.here / "2") == content(site.source)
            assert said_by(site.here / "2") == b"2\n"
        if seq == 2:
            assert linked_seq(site.here, PREVIOUS) == 1
    work()
    assert content(site.here / "current") == content(site.source)
    assert said_by(site.here / "current") == b"2\n"
    assert rollback("fleet", site.into) == (1, True)


def test_a_rollback_killed_at_every_change(site: Site) -> None:
    """What is current is never taken back; what was taken back is marked, and refused, as soon as it is another."""
    for seq in (1, 2):
        site.change(str(seq))
        site.publish()
        site.fetch()
        activate("fleet", seq, site.into, TRUST)
    number = 1
    while killed_at(number, lambda: rollback("fleet", site.into)):
        assert not is_taken_back(site.here, 1)
        is_back = linked_seq(site.here, CURRENT) == 1
        assert is_taken_back(site.here, 2) == is_back
        assert linked_seq(site.here, CURRENT) in (1, 2)
        if is_back:
            known = refused(site.here)
            assert (known and known.seq) == 2
        number += 1
    assert number > 4, "it was hardly killed"
    assert rollback("fleet", site.into) == (1, False)
    assert is_taken_back(site.here, 2)
    activate("fleet", 2, site.into, TRUST)
    assert not is_taken_back(site.here, 2)
    activate("fleet", 1, site.into, TRUST)
    assert not is_taken_back(site.here, 2), "a person chose it: what runs goes on"


def below(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_pip(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b"\0install\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextlib.contextmanager
def killed_amid_pip(work: Callable[[], object]) -> Iterator[int]:
    """The pip that a process had started for ``work`` when it was killed: it lives on, and stands still."""
    worker = os.fork()
    if worker == 0:
        try:
            work()
        finally:
            os._exit(1)
    found: list[int] = []
    while not found:
        assert os.waitpid(worker, os.WNOHANG) == (0, 0), "it has ended without a pip"
        found = [pid for pid in below(worker) if is_pip(pid)]
    os.kill(found[0], signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    try:
        yield found[0]
    finally:
        os.kill(found[0], signal.SIGKILL)


def is_held(place: Path) -> bool:
    with (place / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_killed_amid_pip_nobody_begins_anew_while_it_writes(site: Site) -> None:
    """Else what it writes there would be taken for what the next one installed."""
    write_wheel(site.source / "wheels", "1")
    site.publish()
    with killed_amid_pip(site.fetch):
        assert is_held(site.here)
        assert not seqs(site.here)
    assert said_by(site.fetch().directory) == b"1\n"
    assert not site.fetch().is_new


def test_every_kill_from_nothing(site: Site) -> None:
    """As above, but each kill finds an empty place, so that each moment of a whole fetch is met."""
    (site.source / "bin/tool").write_bytes(b"small")
    site.publish()
    places = iter(range(10_000))
    into = [site.place / "into-0"]

    def work() -> None:
        fetch(site.store, None, "fleet", None, into[0], TRUST, site.host("node"), no_progress)

    for _ in every_kill(work):
        work()
        assert content(into[0] / "fleet/1") == content(site.source)
        assert [path.name for path in (into[0] / "fleet").glob("*.partial")] == []
        into[0] = site.place / f"into-{next(places) + 1}"


@pytest.mark.parametrize("what", ["bin/tool", "venv/bin/boxlink"])
def test_what_was_changed_here_is_not_taken_for_what_was_fetched(site: Site, what: str) -> None:
    """Its programs are run next: also what stands among those that were installed is looked at."""
    site.publish()
    top = site.fetch().directory
    (top / what).parent.mkdir(parents=True, exist_ok=True)
    (top / what).write_text("#!/bin/sh\n")
    with pytest.raises(Corrupt) as caught:
        site.fetch()
    assert caught.value.path in (str(top / what), str(top / "venv"))
    with pytest.raises(Corrupt):
        activate("fleet", 1, site.into, TRUST)


def test_byte_code_that_python_writes_by_itself_is_no_change(site: Site) -> None:
    site.publish()
    top = site.fetch().directory
    (top / "venv/lib").mkdir(parents=True)
    note_installed(site.here, 1, top)
    (top / "venv/lib/__pycache__").mkdir()
    (top / "venv/lib/__pycache__/a.pyc").write_bytes(b"code")
    assert not site.fetch().is_new
    (top / "venv/lib/a.pth").write_text("import os")
    with pytest.raises(Corrupt, match="not as it was installed"):
        site.fetch()


def test_a_directory_without_its_statement_is_fetched_anew(site: Site) -> None:
    site.publish()
    top = site.fetch().directory
    (site.here / "1.json").unlink()
    (top / "bin/tool").write_bytes(b"who knows")
    assert site.fetch().is_new
    assert content(top) == content(site.source)
    assert activate("fleet", 1, site.into, TRUST)[1]


def test_names_that_only_look_like_a_seq_are_strangers(site: Site) -> None:
    site.publish()
    site.fetch()
    for name in ("²", "01", "0", "1x"):
        (site.here / name).mkdir()
    assert seqs(site.here) == [1]
    assert prune("fleet", site.into, is_dry_run=False).gone == []
    assert (site.here / "01").is_dir()
