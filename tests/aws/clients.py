"""boto3's clients for the stand-in: unchanged but for where they go and as whom."""

from __future__ import annotations

import functools
from typing import Any

import boto3
from botocore.config import Config

from tests.aws.records import REGION
from tests.aws.standin import Identity, Standin


def client(standin: Standin, service: str, identity: Identity | None = None, *, tries: int = 1, **options: Any) -> Any:
    who = identity or standin.administrator
    return _session().client(
        service,
        region_name=REGION,
        endpoint_url=standin.endpoint,
        aws_access_key_id=who.access_key,
        aws_secret_access_key=who.secret_key,
        config=Config(retries={"total_max_attempts": tries}, max_pool_connections=32, **options),
    )


@functools.cache
def _session() -> boto3.session.Session:
    """One for all, because it is this that keeps the models, which take a second to load."""
    return boto3.session.Session()
