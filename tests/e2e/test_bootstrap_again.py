"""What a machine starts that has booted before: what `current` names here, with the store or without it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.core import names
from synclib.core.signing import Signer, private_pem
from synclib.engine.host import no_progress
from synclib.errors import Corrupt, Invalid, Missing
from tests.e2e.test_bootstrap import SIGNER, Instance
from tests.imds_server import Imds, serving
from tools.bootstrap.links import PREVIOUS, linked_seq
from tools.fleet.release_place import Trust, activate, fetch, rollback

TRUST = Trust({SIGNER.public})


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


class Node:
    """A machine whose role says which release it is, and ends."""

    def __init__(self, instance: Instance, imds: Imds) -> None:
        self.instance, self.imds = instance, imds
        self.place = instance.root / "release/fleet"
        self.told()

    def told(self, release: str = "fleet", **more: object) -> None:
        self.imds.paths["/latest/user-data"] = self.instance.user_data(
            release, run=["cat", "{release}/bin/tool"], **more
        )

    def publish(self, text: str, signer: Signer | None = SIGNER) -> int:
        (self.instance.source / "bin/tool").write_text(text)
        return self.instance.release(signer).seq

    def boot(self) -> str:
        """What runs; why not, where nothing does."""
        done = self.instance.run(imds=self.imds)
        assert "Traceback" not in done.stderr
        return done.stdout if done.returncode == 0 else done.stderr

    def fetch(self, seq: int) -> None:
        """As who follows a channel does."""
        instance = self.instance
        fetch(instance.store, None, "fleet", seq, instance.root / "release", TRUST, instance.host(), no_progress)

    def activate(self, seq: int) -> None:
        self.fetch(seq)
        activate("fleet", seq, self.instance.root / "release", TRUST)

    def without_store(self) -> str:
        store = self.instance.place / "store"
        away = store.rename(store.with_name("away"))
        try:
            return self.boot()
        finally:
            away.rename(store)

    def events(self) -> list[str]:
        return [said["event"] for said in self.instance.log()]


@pytest.fixture
def node(instance: Instance) -> Iterator[Node]:
    with serving(Imds()) as imds:
        yield Node(instance, imds)


def test_a_restart_does_not_take_what_was_published_since(node: Node) -> None:
    node.publish("one")
    assert node.boot() == "one"
    node.publish("two")
    assert node.boot() == "one"
    assert linked_seq(node.place, PREVIOUS) is None


@pytest.mark.parametrize("release", ["fleet", "fleet@1"])
def test_a_restart_keeps_what_a_channel_brought(node: Node, release: str) -> None:
    """Whatever seq the user-data pinned, and whatever else was published."""
    node.publish("one")
    node.told(release)
    assert node.boot() == "one"
    node.publish("two")
    node.publish("three")
    node.activate(2)
    assert node.boot() == "two"
    assert node.boot() == "two"


@pytest.mark.parametrize("release", ["fleet", "fleet@2"])
def test_going_back_goes_back(node: Node, release: str) -> None:
    """A rollback while nothing runs here: the next start runs what it names."""
    node.publish("one")
    node.publish("two")
    node.told(release)
    assert node.boot() == "two"
    node.activate(1)
    assert node.boot() == "one"
    rollback("fleet", node.instance.root / "release")
    assert node.boot() == "two"
    node.publish("three")
    node.activate(3)
    assert node.boot() == "three"
    rollback("fleet", node.instance.root / "release")
    assert node.boot() == "two"
    assert node.without_store() == "two"


def test_what_a_first_boot_brought_is_a_release_like_any_other(node: Node) -> None:
    """After a rollback it is fetched and activated by its seq, as what boxlink fetched is."""
    node.publish("one")
    assert node.boot() == "one"
    node.publish("two")
    node.activate(2)
    into = node.instance.root / "release"
    assert rollback("fleet", into) == (1, True)
    activate("fleet", 2, into, TRUST)
    node.activate(1)
    assert node.boot() == "one"
    with pytest.raises(Invalid, match="not trusted"):
        activate("fleet", 1, into, Trust(()))


@pytest.mark.parametrize("change", ["byte", "note", "no note", "boot tar"])
def test_what_is_not_as_a_first_boot_made_it_is_not_activated(node: Node, change: str) -> None:
    node.publish("one")
    assert node.boot() == "one"
    statement = node.place / "1.json"
    if change == "byte":
        (node.place / "1/bin/tool").write_text("else")
    elif change == "note":
        (node.place / "1.whole").write_text("0" * 64)
    elif change == "no note":
        (node.place / "1.whole").unlink()
    else:
        # Nobody had signed it, and user-data pinned another tar.
        statement.write_text(json.dumps({**json.loads(statement.read_text()), "boot_sha256": "0" * 64}))
    with pytest.raises(Missing if change == "no note" else Corrupt):
        node.fetch(1)
    if change != "boot tar":
        with pytest.raises(Missing if change == "no note" else Corrupt):
            activate("fleet", 1, node.instance.root / "release", TRUST)


def test_other_words_in_user_data_count_anew(node: Node) -> None:
    node.publish("one")
    node.publish("two")
    node.told("fleet@1")
    assert node.boot() == "one"
    node.told("fleet@2")
    assert node.boot() == "two"
    assert node.boot() == "two"
    node.told("fleet@1")
    assert node.boot() == "one"


def test_what_was_only_brought_has_not_booted(node: Node) -> None:
    """An image that was made with `--no-run` takes at its first start what is current then."""
    node.publish("one")
    assert node.instance.run("--no-run", imds=node.imds).returncode == 0
    node.publish("two")
    assert node.boot() == "two"


def test_a_first_boot_that_cannot_start_its_role_is_none(node: Node) -> None:
    (node.instance.source / "other").write_text("")
    node.publish("one")
    node.imds.paths["/latest/user-data"] = node.instance.user_data(run=["nosuch"])
    assert "has no program nosuch" in node.boot()
    node.publish("two")
    node.told()
    assert node.boot() == "two"


@pytest.mark.parametrize("release", ["fleet", "fleet@1"])
def test_no_store_is_needed_for_what_is_here_and_whole(node: Node, release: str) -> None:
    node.publish("one")
    node.told(release)
    assert "there is none" in node.without_store(), "a first boot needs one"
    assert node.boot() == "one"
    assert node.without_store() == "one"
    node.publish("two")
    node.activate(2)
    assert node.without_store() == "two", "what boxlink fetched is known as well"


@pytest.mark.parametrize("change", ["byte", "more", "less", "mode", "link"])
def test_what_was_changed_here_is_brought_anew(node: Node, change: str) -> None:
    node.publish("one")
    assert node.boot() == "one"
    tool = node.place / "1/bin/tool"
    if change == "byte":
        tool.write_text("ONE")
    elif change == "more":
        (node.place / "1/bin/more").write_text("")
    elif change == "less":
        tool.unlink()
    elif change == "mode":
        tool.chmod(0o777)
    else:
        tool.unlink()
        tool.symlink_to("/etc/passwd")
    assert "there is none in the store" in node.without_store()
    assert node.boot() == "one"
    assert tool.stat().st_mode & 0o777 != 0o777
    assert not (node.place / "1/bin/more").exists()
    assert node.without_store() == "one"


def test_what_another_store_brought_is_not_believed(node: Node, tmp_path: Path) -> None:
    """An image that was baked from another store's release of the same name and seq."""
    (tmp_path / "other").mkdir()
    other = Instance(tmp_path / "other")
    (other.source / "bin/tool").write_text("another's")
    other.release(Signer(private_pem(bytes(32))))
    (other.trusted / "fleet.pub").write_text(Signer(private_pem(bytes(32))).public)
    told = tmp_path / "other.toml"
    told.write_bytes(other.user_data(run=["cat", "{release}/bin/tool"]))
    assert other.run("--user-data", str(told)).stdout == "another's"
    shutil.copytree(other.root, node.instance.root, symlinks=True)
    node.publish("one")
    node.told("fleet@1")
    assert node.boot() == "one"
    assert "what stands here is not this release, and is brought anew" in node.events()
    assert node.without_store() == "one"


def test_a_directory_that_nothing_is_said_of_is_not_believed(node: Node) -> None:
    node.publish("one")
    assert node.boot() == "one"
    (node.place / "1/bin/tool").write_text("else")
    (node.place / "1.json").unlink()
    assert "there is none in the store" in node.without_store()
    assert node.boot() == "one"


def test_who_is_trusted_no_longer_does_not_run_again(node: Node) -> None:
    node.publish("one")
    assert node.boot() == "one"
    (node.instance.trusted / "fleet.pub").unlink()
    assert "not trusted" in node.boot()
    assert "none in the store" in node.without_store()


def test_a_pinned_release_that_nobody_signed_starts_again(node: Node) -> None:
    (node.instance.source / "bin/tool").write_text("one")
    statement = node.instance.release(None)
    node.told("fleet@1", sha256=statement.boot_sha256)
    assert node.boot() == "one"
    assert node.without_store() == "one"
    # Another unsigned one cannot take its place, whoever moved the link.
    node.publish("two", None)
    fetch(
        node.instance.store, None, "fleet", 2, node.instance.root / "release", Trust((), is_unsigned_allowed=True),
        node.instance.host(), no_progress,
    )  # fmt: skip
    (node.place / "current").unlink()
    (node.place / "current").symlink_to("2")
    assert "not signed" in node.boot()


def test_a_note_that_is_damaged_is_no_reason_to_run_it(node: Node) -> None:
    node.publish("one")
    assert node.boot() == "one"
    for noted in (b"", b"\xff" * 64, b"0" * 64, b"0" * 1000):
        (node.place / "1.whole").write_bytes(noted)
        assert "there is none in the store" in node.without_store()
    assert node.boot() == "one"
    assert node.without_store() == "one"


def test_killed_while_what_was_changed_is_brought_anew(node: Node) -> None:
    """`current` goes on to name the seq that ran."""
    node.publish("one")
    assert node.boot() == "one"
    node.publish("two")
    shutil.rmtree(node.place / "1")
    for name in ("1.json", "1.whole"):
        (node.place / name).unlink()
    assert os.readlink(node.place / "current") == "1"
    assert node.boot() == "one"
    assert node.instance.get(names.statement_key("fleet", 2))
