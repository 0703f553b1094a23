"""A stand-in of its own for each test, and boto3's clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws.clients import client
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
