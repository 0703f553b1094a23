"""`boxlink upgrade` without --local asks for instances; where none is, it says so, and what else there may be."""

from __future__ import annotations

import json
from pathlib import Path

from synclib.clock import SystemClock, now_text
from synclib.core.registration import NodeStatus
from tests.aws.boxlink_command import Publisher
from tests.aws.standin import Standin


def test_where_no_instance_runs_it_is_said_what_was_looked_for(standin: Standin, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "fleet", standin)
    node = tmp_path / "fleet/store/node"
    node.mkdir()
    said = NodeStatus(role="render", at=now_text(SystemClock()))
    for name, status in {
        "render-7": said,
        "other": said.model_copy(update={"role": "proxy"}),
        "silent": said.model_copy(update={"at": "2020-01-01T00:00:00Z"}),
        "ended": said.model_copy(update={"is_stopped": True}),
    }.items():
        (node / name).write_text(status.model_dump_json())
    error = json.loads(publisher.run("upgrade", "render", "--seq", "covers=1", "--json", code=10))["error"]
    region = publisher.environment()["AWS_REGION"]
    assert error["message"] == f"no instance of role render and this store runs in region {region}"
    assert "need --local DIR" in error["hint"]
    assert error["hint"].endswith("as they told the store: render-7")
