"""A first boot from S3: what it signs itself must be what a real server takes (BOXLINK_TEST_S3), and moto."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synclib.clock import SystemEntropy
from synclib.core.signing import Signer, private_pem
from synclib.engine.host import Host, no_progress
from synclib.engine.logship import read_segment
from synclib.engine.release import publish_release
from synclib.lazy.dataset import STORE_KEY
from synclib.store.base import Store
from tests.conformance.conftest import BUCKET, REAL_ENDPOINT, REAL_S3, open_s3
from tests.imds_server import Imds, serving
from tests.kit import PatientClock
from tools.bootstrap.failure import AlreadyThere, Failure
from tools.bootstrap.imds import Metadata
from tools.bootstrap.links import CURRENT, linked_seq
from tools.bootstrap.log import Log
from tools.bootstrap.main import Options, boot
from tools.bootstrap.objects import get, open_objects
from tools.bootstrap.send_log import send_log

SIGNER = Signer(private_pem(bytes(range(32))))


@pytest.fixture(params=["s3", *(["real"] if REAL_S3 else [])])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, str]]:
    """A store and its URL; the environment leads there."""
    request.getfixturevalue("aws_environment")
    token = SystemEntropy().token(8).hex()
    endpoint = REAL_ENDPOINT if request.param == "real" else request.getfixturevalue("moto_endpoint")
    url = f"{REAL_S3 if request.param == 'real' else f's3://{BUCKET}'}/a b+{token}"
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = open_s3(url, endpoint, is_wrapped=True)
    store.put(STORE_KEY, b"{}")
    yield store, url
    for info in list(store.list("")):
        store.delete(info.key)


def test_boots_with_the_keys_of_the_environment_and_of_the_role(
    place: tuple[Store, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, url = place
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"x" * 100_000)
    host = Host("n", PatientClock(), SystemEntropy(), tmp_path / "state", tmp_path / "cache")
    publish_release(store, None, "fleet", tmp_path / "source", SIGNER, b"", host, no_progress)
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted/a.pub").write_text(SIGNER.public)
    told = f'store = "{url}"\nrole = "r"\nrelease = "fleet"\n'.encode()
    with serving(Imds(user_data=told)) as imds:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.address)
        boot(Options(tmp_path / "one", None, tmp_path / "trusted", is_run=False), Log(tmp_path / "log"))
        assert linked_seq(tmp_path / "one/release/fleet", CURRENT) == 1
        keys = [
            os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        ]
        imds.give_role(*keys)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        boot(Options(tmp_path / "two", None, tmp_path / "trusted", is_run=False), Log(tmp_path / "log"))
        assert (tmp_path / "two/release/fleet/current/file").read_bytes() == b"x" * 100_000
        assert ("GET", "/latest/meta-data/iam/security-credentials/node") in imds.requests


def test_what_a_failed_boot_said_is_put_once(place: tuple[Store, str], tmp_path: Path) -> None:
    store, url = place
    objects = open_objects(url, Metadata())
    log = Log(tmp_path / "bootstrap.log")
    log.send = lambda: send_log(log.path, tmp_path / "sent", objects, "n1")
    log.failed("no reason", "none")
    log.failed("again", "none")
    keys = [info.key for info in store.list("log/")]
    assert b"".join(read_segment(store, key) for key in keys) == log.path.read_bytes()
    assert len(keys) == 2
    with pytest.raises(AlreadyThere):
        objects.put_new(keys[0], b"other")


@pytest.mark.skipif(not REAL_S3, reason="moto takes any signature; set BOXLINK_TEST_S3")
@pytest.mark.parametrize("place", ["real"], indirect=True)
def test_a_wrong_key_is_refused_by_the_server(place: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, url = place
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Failure, match="refused with status 403"):
        get(open_objects(url, Metadata()), STORE_KEY, 1000)
