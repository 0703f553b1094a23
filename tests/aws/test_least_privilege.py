"""Least privilege, shown: whatever is taken out of a policy of docs/iam/, be it one action, one resource or one prefix,
something that boxlink really asks in that role is refused then."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from proxy.core.networks import parse_networks
from proxy.metrics import Counters
from proxy.registry import Registry
from render.register import Identity, Registrar
from synclib.clock import ManualClock, SeededEntropy, SystemClock
from synclib.core import names, zstd
from synclib.core.machine import Machine
from synclib.core.registration import Channel
from synclib.core.retention import Retention
from synclib.core.rollout import NodeSpec
from synclib.core.trace import Touch
from synclib.engine.channels import move_channel, read_channel
from synclib.engine.collect import collect
from synclib.engine.host import Host, no_progress
from synclib.engine.logship import WALK_SEGMENTS_MAX, LogShipper
from synclib.engine.node import Node
from synclib.engine.registrations import registrations
from synclib.engine.release import publish_release
from synclib.engine.report import Identity as NodeIdentity
from synclib.engine.report import Reporter
from synclib.engine.swap_watch import SwapWatch
from synclib.engine.traces import publish_trace, read_traces
from synclib.errors import BoxlinkError, Missing
from synclib.lazy.dataset import STORE_KEY, Dataset
from synclib.store.base import Store
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter
from synclib.store.s3 import PUT_BYTES_MAX, S3Store
from synclib.volume.aws_calls import Calls
from synclib.volume.base import VolumeState
from synclib.volume.ebs import EbsDriver
from synclib.volume.waiting import snapshot_is_completed, volume_is, wait_until
from tests.aws.clients import client
from tests.aws.least import Noted, unneeded
from tests.aws.policies import BUCKET, PREFIX, ROLES, PolicyStore, policy_document
from tests.aws.requests import IMAGE, KIND, block
from tests.aws.s3_gate import running_gate
from tests.aws.standin import Standin
from tests.aws.test_iam_store import ROOT, Quiet
from tests.engine.test_release import BOOTSTRAP, SIGNER, TRUST
from tests.engine.test_release import Site as Releases
from tests.kit import Kit
from tools.fleet.ec2_fleet import Ec2Fleet
from tools.fleet.readiness import Readiness
from tools.fleet.release_place import fetch


class Site:
    """A store that each role sees with its own rights."""

    def __init__(self, place: Path) -> None:
        self.place, self.noted = place, Noted()
        self.releases = Releases(place / "releases")
        self.backing: Store = self.releases.store
        self.backing.put(STORE_KEY, b"{}")

    def store(self, role: str) -> PolicyStore:
        return PolicyStore(self.backing, role, self.noted)

    def host(self, name: str) -> Host:
        return Host(name, SystemClock(), SeededEntropy(3), self.place / f"{name}-state", self.place / f"{name}-cache")


def publish_and_collect(site: Site) -> None:
    kit = Kit(site.place / "publisher", site.store("publisher"))
    for seq in (1, 2):
        kit.write({b"a": b"%d" % seq * 100, b"d": None, b"d/b": b"b" * 20_000})
        kit.publish()
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)
    with pytest.raises(Missing):
        Dataset(site.store("publisher"), names.dataset_root("other")).read_head()


def operate(site: Site) -> None:
    store, host = site.store("operator"), site.releases.host()
    for seq in (1, 2):
        site.releases.change(str(seq))
        publish_release(store, None, "fleet", site.releases.source, SIGNER, BOOTSTRAP, host, no_progress)
        channel = Channel(release="fleet", seq=seq, at="")
        move_channel(store, host, "stable", channel, is_back_allowed=False)
    kit = Kit(site.place / "operator", store)
    collect(kit.dataset, kit.host, Retention(last=1), None, no_progress)


def follow_programs(site: Site, role: str) -> None:
    """As ``up`` does, of a channel; a release that is not there too."""
    store, host = site.store(role), site.host(role)
    for name in ("stable", "none"):
        with contextlib.suppress(Missing):
            channel = read_channel(store, name)
            assert channel is not None
            seq = channel.channel.seq
            fetch(store, None, "fleet", seq, site.place / f"{role}-releases", TRUST, host, no_progress)
    with pytest.raises(BoxlinkError):
        fetch(store, None, "other", 1, site.place / f"{role}-releases", TRUST, host, no_progress)


def say_how_it_does(site: Site, role: str) -> None:
    """Logs of a machine that was installed anew under its name, and its report."""
    (site.place / role / "log").mkdir(parents=True)
    (site.place / role / "log/r.log").write_text("new\n")
    for number in range(WALK_SEGMENTS_MAX + 1):
        site.backing.put(names.log_key(role, "r.log", number * 4), zstd.compress(b"old\n"))
    log = site.place / role / "log"
    LogShipper(log, site.place / role / "ship", role, site.store(role), ManualClock(), Quiet()).round(is_last=True)
    Reporter(site.place / role, site.store(role), site.host(role), NodeIdentity()).round({})


def follow_data(site: Site) -> None:
    store, data = site.store("node"), site.place / "data"
    (data / "covers").mkdir(parents=True)
    (data / "covers" / names.ACTIVE).touch()
    assert Node(data, store, None, site.host("node"), Quiet(), 10, Meter()).run_once() == {}
    dataset = Dataset(store, ROOT)
    for seq in range(2, 9):
        publish_trace(dataset, site.host("node"), seq, [Touch(b"a", 0, 1, 0)])
    assert read_traces(dataset)
    with pytest.raises(Missing):
        Dataset(store, names.dataset_root("other")).read_head()
    watch = SwapWatch(data, store, site.host("node"), 0)
    watch.round(["covers"])
    site.backing.put(names.swap_key("node"), b"{}")
    with contextlib.suppress(BoxlinkError):
        watch.round(["covers"])


def register_and_go(site: Site) -> None:
    key = names.proxy_key("10.0.0.1", 80)
    store, clock = site.store("node"), SystemClock()
    registrar = Registrar(store, Identity(key, "n1", lease_s=1), clock, structlog.get_logger())
    registrar.show_seq(1)
    registrar.start()
    assert registrar.is_registered.wait(20)
    proxy = site.store("proxy")
    networks = parse_networks(["10.0.0.0/8"], proxy.url)
    registry = Registry(proxy, networks, ManualClock(), Counters(), structlog.get_logger())
    assert list(registry.poll()) == [key]
    # As a new server does, which shows what others show (render/others.py).
    assert [each.key for each in registrations(store)] == [key]
    assert registrar.drain()
    assert registrar.remove()


def break_off(upstream: str, role: str, standin: Standin, place: Path, patch: pytest.MonkeyPatch) -> Noted:
    """A large object whose second part S3 does not take: its parts are not left there, and paid for."""
    who = standin.identity(role, policy_document(role))
    (place / "large").write_bytes(bytes(PUT_BYTES_MAX + 1))
    with running_gate(upstream, [who]) as gate, patch.context() as environ:
        gate.fails = lambda request: "partNumber=2" in request.query
        environ.setenv("AWS_ACCESS_KEY_ID", who.access_key)
        environ.setenv("AWS_SECRET_ACCESS_KEY", who.secret_key)
        store = S3Store(BUCKET, PREFIX, endpoint=gate.endpoint, region="us-east-1")
        with pytest.raises(BoxlinkError):
            store.put("data/covers/pack/large", place / "large")
        # Other parts were cut off on their way, and are not what was signed.
        assert not [each for each in gate.refused if "AccessDenied" in each]
        return gate.noted


@pytest.fixture(scope="module")
def asked_of_the_store(tmp_path_factory: pytest.TempPathFactory) -> Noted:
    site = Site(tmp_path_factory.mktemp("asked"))
    publish_and_collect(site)
    operate(site)
    follow_data(site)
    register_and_go(site)
    for role in ("node", "proxy"):
        follow_programs(site, role)
        say_how_it_does(site, role)
    return site.noted


@pytest.mark.parametrize("role", ROLES)
def test_nothing_of_the_store_is_given_that_nobody_needs(
    asked_of_the_store: Noted,
    upstream: str,
    standin: Standin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
) -> None:
    asked = asked_of_the_store.of(role)
    if role in ("publisher", "operator"):
        asked += break_off(upstream, role, standin, tmp_path, monkeypatch).of(role)
    assert unneeded(policy_document(role), asked, of_s3=True) == []


class Roles:
    """Drivers with the rights of each role."""

    def __init__(self, standin: Standin) -> None:
        self.standin, self.clock, self.entropy = standin, standin.clock, SeededEntropy(2)
        self.calls = Calls(standin.clock, SeededEntropy(1))
        self.people = {role: standin.identity(role, policy_document(role)) for role in ROLES}

    def driver(self, role: str) -> EbsDriver:
        who = self.people[role]
        ec2, ebs = (client(self.standin, service, who) for service in ("ec2", "ebs"))
        return EbsDriver(ec2, ebs, self.clock, self.entropy)

    @contextlib.contextmanager
    def fleet(self) -> Iterator[str]:
        """The id of an instance that an operator started, and ends."""
        subnets, groups = tuple(self.standin.instances.subnets)[:1], tuple(self.standin.instances.groups)
        machine = Machine(IMAGE, (KIND,), subnets, groups, "boxlink-node")
        ec2 = client(self.standin, "ec2", self.people["operator"])
        readiness = Readiness(MemoryStore(), None)
        fleet = Ec2Fleet(ec2, readiness, machine, f"s3://{BUCKET}/{PREFIX}", self.calls)
        spec = NodeSpec(node="render-1", role="render", release="fleet@1", pins={"covers": 1})
        fleet.start(spec)
        self.clock.advance(60)
        fleet.note_pins(spec)
        [record] = self.standin.instances.records.values()
        yield record.id
        fleet.drain(spec)

    def snapshot_directly(self, role: str) -> str:
        driver = self.driver(role)
        blocks = driver.blocks()
        parent = ""
        for number in (1, 2):
            tags = {"boxlink:dataset": "covers"}
            started = blocks.start(size_gib=1, parent_id=parent, token=f"{role}-{number}", tags=tags)
            digest = blocks.put(started.id, 1, block(number))
            blocks.complete(started.id, changed_count=1, checksum=hashlib.sha256(digest).digest())
            driver.tag(started.id, {"boxlink:complete": "1"})
            wait_until(
                driver.snapshots, [started.id], snapshot_is_completed,
                clock=self.clock, entropy=self.entropy, deadline_s=60,
            )  # fmt: skip
            if parent:
                assert list(blocks.changed(parent, started.id)) == [1]
            assert list(blocks.written(started.id)) == [1]
            assert blocks.get(started.id, 1) == block(number)
            parent = started.id
        return parent

    def use_volume(self, role: str, snapshot: str, instance: str, between: Callable[[str], object]) -> None:
        driver = self.driver(role)
        zone = self.standin.instances.records[instance].zone
        volume = driver.create_volume(size_gib=1, zone=zone, token=f"{role}-v", tags={}, snapshot_id=snapshot)

        def wait(state: VolumeState) -> None:
            wait_until(
                driver.volumes, [volume.id], volume_is(state), clock=self.clock, entropy=self.entropy, deadline_s=60
            )

        wait(VolumeState.AVAILABLE)
        driver.attach(volume.id, instance)
        wait(VolumeState.IN_USE)
        between(volume.id)
        driver.detach(volume.id, instance)
        wait(VolumeState.AVAILABLE)
        driver.delete_volume(volume.id)


def test_nothing_of_ec2_and_ebs_is_given_that_nobody_needs(standin: Standin) -> None:
    roles = Roles(standin)
    for role in ("publisher", "operator"):
        snapshot = roles.snapshot_directly(role)
    operator = roles.driver("operator")
    with roles.fleet() as instance:
        roles.use_volume("node", snapshot, instance, lambda volume: None)
        roles.driver("node").snapshots(tags={"boxlink:complete": "1"})
        roles.use_volume("operator", snapshot, instance, lambda volume: operator.snapshot(volume, token="s", tags={}))
    operator.delete_snapshot(snapshot)
    found = {role: unneeded(policy_document(role), standin.noted.of(role), of_s3=False) for role in ROLES}
    assert found == {role: [] for role in ROLES}
