"""A stand-in of its own for each test, and boto3's clients for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.aws.clients import client
from tests.aws.policies import BUCKET
from tests.aws.standin import Standin, running_standin


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with running_standin(tmp_path) as standin:
        yield standin


@pytest.fixture
def ec2(standin: Standin) -> Any:
    return client(standin, "ec2")


@pytest.fixture
def ebs(standin: Standin) -> Any:
    return client(standin, "ebs")


@pytest.fixture
def upstream() -> Iterator[str]:
    """A real S3 server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "moto", "aws_secret_access_key": "moto"}
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    s3.create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()
