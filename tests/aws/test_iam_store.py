"""Policies: the S3 rights of docs/iam/ are enough for each role's work, and do not reach further."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from proxy.core.networks import parse_networks
from proxy.metrics import Counters
from proxy.registry import Registry
from synclib.clock import ManualClock, SeededEntropy, SystemClock
from synclib.core import names
from synclib.core.retention import Retention
from synclib.engine.collect import collect
from synclib.engine.compact import compact
from synclib.engine.host import Host, no_progress
from synclib.engine.logship import LogShipper
from synclib.engine.node import Node
from synclib.errors import Invalid
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from tests.aws.policies import ROLES, PolicyStore
from tests.kit import Kit, read_tree

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
