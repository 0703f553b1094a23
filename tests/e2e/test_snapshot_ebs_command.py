"""`boxlink snapshot --driver ebs`: the real command and boto3, against the stand-in of AWS."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.boxlink_process import Machine

standins = pytest.importorskip("tests.aws.standin")
REGION = pytest.importorskip("tests.aws.records").REGION


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "aws").mkdir()
    with standins.running_standin(tmp_path / "aws", pace=5.0) as found:
        yield found


@pytest.fixture
def machine(tmp_path: Path, standin: Any) -> Machine:
    found = Machine(tmp_path)
    found.environment |= {
        "AWS_ENDPOINT_URL_EC2": standin.endpoint,
        "AWS_ENDPOINT_URL_EBS": standin.endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": standin.administrator.access_key,
        "AWS_SECRET_ACCESS_KEY": standin.administrator.secret_key,
        "BOXLINK_CONFIG": str(tmp_path / "none.toml"),
    }
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        (source / str(number)).write_bytes(random.Random(number).randbytes(100_000))
    found.run("init")
    found.run("publish", "covers", source)
    return found


def test_create_list_buy_and_prune(machine: Machine, standin: Any) -> None:
    def snapshot(*words: object, code: int = 0) -> dict[str, Any]:
        return machine.json("snapshot", *words, "--driver", "ebs", code=code)

    first = snapshot("create", "covers")
    assert (first["new"], first["put_blocks"]) == (True, first["blocks"])
    (machine.place / "source/more").write_bytes(b"more")
    machine.run("publish", "covers", machine.place / "source")
    second = snapshot("create", "covers")
    assert (second["parent"], second["why_full"]) == (first["snapshot"], "")
    assert second["put_blocks"] < first["put_blocks"]
    assert [row["snapshot"] for row in snapshot("ls")["snapshots"]] == [second["snapshot"], first["snapshot"]]
    assert sorted(slot["seq"] for slot in snapshot("show", second["snapshot"])["slots"]) == [1, 2]
    # Nothing is paid for without a yes.
    zone = standin.site.zones[0]
    refused = snapshot("volume", second["snapshot"], "--zone", zone, code=2)
    assert "$0.08 a month" in refused["error"]["message"]
    assert standin.volumes.records == {}
    made = snapshot("volume", second["snapshot"], "--zone", zone, "--yes")
    assert (made["zone"], made["state"], made["usd_month"]) == (zone, "available", 0.08)
    assert snapshot("volume", second["snapshot"], "--zone", zone, "--yes")["volume"] == made["volume"]
    assert [row["snapshot"] for row in snapshot("prune", "--keep-last", 1)["deleted"]] == [first["snapshot"]]
    assert [row["snapshot"] for row in snapshot("ls", "covers")["snapshots"]] == [second["snapshot"]]
