"""Policies: the S3 rights of docs/iam/ are enough for each role's work, and do not reach further."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import structlog

from proxy.core.networks import parse_networks
from proxy.metrics import Counters
from proxy.registry import Registry
from render.register import Identity, Registrar
from synclib.clock import ManualClock, SeededEntropy, SystemClock
from synclib.core import names, zstd
from synclib.core.registration import Channel
from synclib.core.retention import Retention
from synclib.engine.channels import move_channel, read_channel
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import Host, no_progress
from synclib.engine.logship import WALK_SEGMENTS_MAX, LogShipper, read_segment
from synclib.engine.node import Node
from synclib.engine.release import publish_release
from synclib.errors import Invalid, Missing
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.lazy.open import open_view
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from tests.aws.policies import ROLES, PolicyStore
from tests.engine.test_release import BOOTSTRAP, SIGNER, TRUST, Site
from tests.kit import Kit, read_tree
from tools.fleet.release_place import fetch

ROOT = names.dataset_root("covers")
ULID = "0" * 26
NODE_KEY, LOG_KEY, PROXY_KEY = names.node_key("n1"), names.log_key("n1", "r.log", 0), names.proxy_key("10.0.0.1", 80)
KEYS_OF_PROGRAMS = [names.current_key("boxlink"), names.boot_key("boxlink", 1), names.channel_key("stable")]


class Quiet:
    """A log that nobody reads."""

    def info(self, event: str, **fields: object) -> None:
        """Nothing."""

    warning = info


@pytest.fixture
def backing() -> MemoryStore:
    store = MemoryStore()
    store.put(STORE_KEY, b"{}")
    return store


@pytest.fixture
def publisher(tmp_path: Path, backing: MemoryStore) -> Kit:
    """A publisher with its policy, and two seqs."""
    kit = Kit(tmp_path, PolicyStore(backing, "publisher"))
    for seq in (1, 2):
        kit.write({b"a": b"%d" % seq * 100, b"d": None, b"d/b": b"b" * 20_000})
        kit.publish()
    return kit


def test_publisher_publishes_compacts_and_collects(publisher: Kit, tmp_path: Path) -> None:
    compact(publisher.dataset, publisher.host, no_progress, is_full=True)
    collect(publisher.dataset, publisher.host, Retention(last=1), None, no_progress)
    publisher.restore(tmp_path / "copy")
    assert read_tree(tmp_path / "copy")[b"a"] == b"2" * 100


def test_node_follows_and_reports(publisher: Kit, backing: MemoryStore, tmp_path: Path) -> None:
    store = PolicyStore(backing, "node")
    (tmp_path / "data" / "covers").mkdir(parents=True)
    (tmp_path / "data" / "covers" / names.ACTIVE).touch()
    (tmp_path / "data" / "log").mkdir()
    (tmp_path / "data" / "log" / "render-1.log").write_text("started\n")
    host = Host("n1", SystemClock(), SeededEntropy(3), tmp_path / "node-state", tmp_path / "node-cache")
    node = Node(tmp_path / "data", store, None, host, Quiet(), 10, Meter())
    assert node.run_once() == {}
    assert read_tree(tmp_path / "data" / "covers")[b"a"] == b"2" * 100
    shipper = LogShipper(tmp_path / "data" / "log", tmp_path / "ship", "n1", store, ManualClock(), Quiet())
    shipper.round(is_last=True)
    assert [info.key for info in backing.list("log/n1/render-1.log/")]
    backing.put(names.swap_key("n1"), b"{}")
    assert store.get(names.swap_key("n1"), size_max=10) is not None, "it sees what is wished of its volume"
    store.put(NODE_KEY, b"{}")
    store.put(PROXY_KEY, b"{}")
    assert [info.key for info in store.list("proxy/")] == [PROXY_KEY], "a new server asks what others serve"
    store.delete(PROXY_KEY)


def test_node_that_was_installed_anew_goes_on_with_its_logs(backing: MemoryStore, tmp_path: Path) -> None:
    """What its name has sent before stands there, more of it than is walked over one by one."""
    for number in range(WALK_SEGMENTS_MAX + 20):
        backing.put(names.log_key("n1", "render-1.log", number * 4), zstd.compress(b"old\n"))
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "render-1.log").write_text("new\n")
    before = {info.key for info in backing.list("log/")}
    for role in ("node", "proxy"):
        shipper = LogShipper(
            tmp_path / "log", tmp_path / role, "n1", PolicyStore(backing, role), ManualClock(), Quiet()
        )
        shipper.round(is_last=True)
        (added,) = {info.key for info in backing.list("log/")} - before
        assert read_segment(backing, added) == b"new\n"
        backing.delete(added)


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_there_is_missing_to_who_may_read_it(backing: MemoryStore, role: str) -> None:
    """Not refused: a node looks for much that need not be there."""
    keys = [names.head_key(ROOT), names.pin_key(ROOT, ULID), NODE_KEY, LOG_KEY, PROXY_KEY, *KEYS_OF_PROGRAMS]
    policy = PolicyStore(backing, role)
    read = 0
    for key in [*keys, names.swap_key("n1"), names.upgrade_key(ULID)]:
        if policy.may_read(key):
            with pytest.raises(Missing):
                policy.get(key, size_max=10)
            read += 1
    assert read >= 2


def test_the_judge_tells_what_is_not_there_only_to_who_may_list_it(backing: MemoryStore) -> None:
    """Else it would be more lenient than S3."""
    backing.delete(STORE_KEY)
    with pytest.raises(Invalid, match="ListBucket"):
        PolicyStore(backing, "node").get(STORE_KEY, size_max=10)
    with pytest.raises(Missing):
        PolicyStore(backing, "operator").get(STORE_KEY, size_max=10)


def test_node_follows_a_channel_of_an_operator(publisher: Kit, backing: MemoryStore, tmp_path: Path) -> None:
    store = PolicyStore(backing, "node")
    with pytest.raises(Missing, match="no channel stable"):
        read_channel(store, "stable")
    operator = PolicyStore(backing, "operator")
    stable = Channel(dataset="covers", seq=1, at="")
    move_channel(operator, publisher.host, "stable", stable, is_back_allowed=False)
    channel = read_channel(store, "stable")
    assert channel is not None
    view = open_view(Dataset(store, ROOT), channel.channel.seq)
    with contextlib.closing(view), contextlib.closing(view.open(b"a")) as file:
        assert file.pread(0, 1000) == b"1" * 100


def test_a_render_server_registers_and_goes(backing: MemoryStore) -> None:
    identity = Identity(PROXY_KEY, "n1", lease_s=1)
    registrar = Registrar(PolicyStore(backing, "node"), identity, SystemClock(), structlog.get_logger())
    registrar.show_seq(1)
    registrar.start()
    assert registrar.is_registered.wait(20)
    assert registrar.drain()
    assert registrar.remove()
    assert list(backing.list("proxy/")) == []


@pytest.mark.parametrize("role", ["node", "proxy"])
def test_programs_of_an_operator_are_fetched_and_followed(tmp_path: Path, role: str) -> None:
    site = Site(tmp_path)
    operator, reader = PolicyStore(site.store, "operator"), PolicyStore(site.store, role)
    for seq in (1, 2):
        site.change(str(seq))
        publish_release(operator, None, "fleet", site.source, SIGNER, BOOTSTRAP, site.host(), no_progress)
        fleet = Channel(release="fleet", seq=seq, at="")
        move_channel(operator, site.host(), "stable", fleet, is_back_allowed=False)
    channel = read_channel(reader, "stable")
    assert channel is not None
    brought = fetch(reader, None, "fleet", channel.channel.seq, site.into, TRUST, site.host("node"), no_progress)
    assert (brought.directory / "version").read_text() == "2"
    assert reader.get(names.boot_key("fleet", 2), size_max=1 << 30) is not None
    publisher = PolicyStore(site.store, "publisher")
    with pytest.raises(Invalid):
        publish_release(publisher, None, "fleet", site.source, SIGNER, BOOTSTRAP, site.host(), no_progress)


def test_node_cannot_publish(publisher: Kit, backing: MemoryStore, tmp_path: Path) -> None:
    head = backing.get(names.head_key(ROOT), size_max=1 << 20)
    kit = Kit(tmp_path / "node", PolicyStore(backing, "node"))
    kit.write({b"a": b"mine"})
    with pytest.raises(Invalid, match="403"):
        kit.publish()
    assert backing.get(names.head_key(ROOT), size_max=1 << 20) == head


def test_proxy_reads_registrations(backing: MemoryStore) -> None:
    backing.put(PROXY_KEY, b"I handle '/tiles/*'. Cache for 365d")
    store = PolicyStore(backing, "proxy")
    networks = parse_networks(["10.0.0.0/8"], store.url)
    registry = Registry(store, networks, ManualClock(), Counters(), structlog.get_logger())
    assert list(registry.poll()) == [PROXY_KEY]
    with pytest.raises(Invalid):
        Dataset(store, ROOT).read_head()


@pytest.mark.parametrize(
    ("key", "writers", "deleters"),
    [
        (STORE_KEY, {"operator"}, {"operator"}),
        (names.swap_key("n1"), {"operator"}, {"operator"}),
        (names.head_key(ROOT), {"publisher", "operator"}, {"publisher", "operator"}),
        (names.pack_key(ROOT, ULID), {"publisher", "operator"}, {"publisher", "operator"}),
        (names.pin_key(ROOT, ULID), {"publisher", "node", "operator"}, {"publisher", "node", "operator"}),
        (names.tag_key(ROOT, "t"), {"publisher", "operator"}, {"publisher", "operator"}),
        (NODE_KEY, {"node", "proxy", "operator"}, {"operator"}),
        (LOG_KEY, {"node", "proxy", "operator"}, {"operator"}),
        (PROXY_KEY, {"node", "operator"}, {"node", "operator"}),
        *((key, {"operator"}, {"operator"}) for key in KEYS_OF_PROGRAMS),
        (names.upgrade_key(ULID), {"operator"}, {"operator"}),
    ],
)
def test_who_writes_and_deletes_what(backing: MemoryStore, key: str, writers: set[str], deleters: set[str]) -> None:
    """Programs and channels come from operators alone: who could write those would run code on the whole fleet."""
    for role in ROLES:
        store = PolicyStore(backing, role)
        if role in writers:
            store.put(key, b"x")
        else:
            with pytest.raises(Invalid):
                store.put(key, b"x")
        if role in deleters:
            store.delete(key)
        else:
            with pytest.raises(Invalid):
                store.delete(key)


def test_other_prefixes_of_the_bucket_are_nobodys() -> None:
    from tests.aws.iam import Access, load_policy
    from tests.aws.policies import BUCKET, policy_document

    for role in ROLES:
        policy = load_policy(policy_document(role))
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert not policy.allows(Access(action, f"arn:aws:s3:::{BUCKET}/other/data/covers/head"))
            assert not policy.allows(Access(action, "arn:aws:s3:::another-bucket/fleet/data/covers/head"))
