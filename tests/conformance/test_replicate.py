"""A dataset is carried to S3 with its history, and a node follows either copy, there and back again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from synclib.clock import SystemEntropy
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Store
from tests.conformance.conftest import BUCKET, REAL_ENDPOINT, REAL_S3, open_s3
from tests.e2e.boxlink_process import Machine
from tests.kit import read_tree


class Site:
    """A store of files that is published to, and one of S3; a node's directory."""

    def __init__(self, place: Path, store: Store, endpoint: str | None) -> None:
        self.copy, self.source, self.data = store, place / "source", place / "data"
        for directory in (self.source, self.data / "covers"):
            directory.mkdir(parents=True)
        store.put(STORE_KEY, b'{"v":1}')
        self.machine = Machine(place)
        # Machine takes away what names a server; here it is the test's own.
        names = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self.machine.environment.update(names | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {}))
        self.machine.run("init")

    def publish(self, number: int) -> int:
        (self.source / "same").write_bytes(b"same" * 5000)
        (self.source / f"f{number % 3}").write_bytes(b"%d" % number * 3000)
        seq: int = self.machine.json("publish", "covers", self.source)["seq"]
        return seq

    def replicate(self) -> dict[str, object]:
        return self.machine.json("replicate", self.copy.url, "covers")

    @contextmanager
    def following(self, store: str) -> Iterator[None]:
        daemon = self.machine.start("sync", "--data", self.data, "--store", store, "--poll", "0.2")
        try:
            yield
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
                raise

    def wait(self, seq: int) -> None:
        """Until the node stands at a seq, with the bytes that were published."""
        deadline = time.monotonic() + 60
        path = self.data / "covers/synch.down"
        while not path.exists() or json.loads(path.read_text())["seq"] != seq:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert read_tree(self.data / "covers") == read_tree(self.source)


@pytest.fixture(params=["s3", *(["real"] if REAL_S3 else [])])
def site(request: pytest.FixtureRequest, tmp_path: Path, aws_environment: None) -> Iterator[Site]:
    token = SystemEntropy().token(8).hex()
    if request.param == "s3":
        url, endpoint = f"s3://{BUCKET}/{token}", request.getfixturevalue("moto_endpoint")
    else:
        url, endpoint = f"{REAL_S3}/{token}", REAL_ENDPOINT
    store = open_s3(url, endpoint, is_wrapped=True)
    yield Site(tmp_path, store, endpoint)
    for info in list(store.list("")):
        store.delete(info.key)


def test_history_is_carried_and_then_only_what_is_new(site: Site, tmp_path: Path) -> None:
    for number in range(3):
        site.publish(number)
    site.machine.run("tag", "covers", "first", "1")
    first = site.replicate()
    assert first["copied"] == {"manifests": 3, "runs": 3, "packs": 3, "attachments": 0}
    assert first["tags"] == 1
    site.publish(3)
    assert site.replicate()["copied"] == {"manifests": 1, "runs": 1, "packs": 1, "attachments": 0}
    again = site.replicate()
    assert again["is_new"] is False
    assert set(again["copied"].values()) == {0}  # type: ignore[attr-defined]
    for seq in (1, 2, 3, 4):
        here, there = tmp_path / f"here{seq}", tmp_path / f"there{seq}"
        site.machine.run("restore", "covers", here, "--seq", seq)
        site.machine.run("restore", "covers", there, "--seq", seq, "--store", site.copy.url)
        assert read_tree(here) == read_tree(there)
    assert site.machine.json("verify", "covers", "--data", "--store", site.copy.url)["damage"] == []


def test_a_node_follows_either_copy(site: Site) -> None:
    site.publish(0)
    site.replicate()
    (site.data / "covers/synch.active").touch()
    with site.following(site.copy.url):
        site.wait(1)
        site.publish(1)
        site.replicate()
        site.wait(2)
    with site.following(site.machine.store):
        site.publish(2)
        site.wait(3)
    site.replicate()
    with site.following(site.copy.url):
        site.publish(3)
        site.replicate()
        site.wait(4)
