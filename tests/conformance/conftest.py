"""The stores that the suites here run on.

``s3`` is moto's server. With BOXLINK_TEST_S3=s3://BUCKET and the usual AWS variables, ``real`` is that bucket. A name
with ``+`` is the same store behind retry and metering, as ``open_store`` gives it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from synclib.clock import SystemClock, SystemEntropy
from synclib.store.base import Store
from synclib.store.file import FileStore
from synclib.store.memory import MemoryStore
from synclib.store.open import open_store
from synclib.store.s3 import S3Store

REAL_S3 = os.environ.get("BOXLINK_TEST_S3", "").rstrip("/")
REAL_ENDPOINT = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
STORES = ["memory", "file", "s3", *(["real"] if REAL_S3 else [])]
BUCKET = "conformance"


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    """Credentials for moto where the caller set none; never those of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        if not REAL_S3:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
                patch.delenv(name, raising=False)
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testtest")
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_CONFIG_FILE", os.devnull)
            patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def moto_endpoint(aws_environment: None) -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()


@pytest.fixture(params=[name + plus for name in STORES for plus in ("", "+")])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    name, plus, _ = request.param.partition("+")
    token = SystemEntropy().token(8).hex()
    if name == "memory":
        yield open_store(f"memory://{token}", {})[0] if plus else MemoryStore(token)
    elif name == "file":
        root = tmp_path / "store"
        root.mkdir()
        yield open_store(f"file://{root}", {})[0] if plus else FileStore(str(root), SystemClock(), SystemEntropy())
    elif name == "s3":
        yield open_s3(f"s3://{BUCKET}/{token}", request.getfixturevalue("moto_endpoint"), is_wrapped=bool(plus))
    else:
        request.getfixturevalue("aws_environment")
        store = open_s3(f"{REAL_S3}/{token}", REAL_ENDPOINT, is_wrapped=bool(plus))
        yield store
        for info in list(store.list("")):
            store.delete(info.key)


@pytest.fixture
def racing_store(request: pytest.FixtureRequest, store: Store) -> Store:
    """Not moto, which looks first and writes then: two at once may both have found nothing."""
    if request.node.callspec.params["store"].startswith("s3"):
        pytest.skip("moto looks and writes in two steps; set BOXLINK_TEST_S3")
    return store


def open_s3(url: str, endpoint: str | None, *, is_wrapped: bool) -> Store:
    region = os.environ.get("AWS_REGION")
    if is_wrapped:
        return open_store(url, {"endpoint": endpoint, "region": region})[0]
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, endpoint=endpoint, region=region)
