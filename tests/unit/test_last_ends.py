"""How a node's processes ended, from a log that anything may stand in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.fleet.last_ends import last_ends
from tools.fleet.node_file import LocalNode


def ended(process: str, **how: object) -> bytes:
    return json.dumps({"event": "ended", "process": process, **how}).encode() + b"\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"", ""),
        (ended("a", code=0), ""),
        (ended("a", code=1), "a ended once, with code 1"),
        (ended("a", code=1) + ended("a", signal="SIGKILL"), "a ended twice, with signal SIGKILL"),
        (ended("a", code=2) * 7 + ended("b", code=3), "a ended 7 times, with code 2, b ended once, with code 3"),
        (b'ded", "process": "a", "code": 1}\n[]\n3\n"x"\n{"event": "ended"}\n\xff\n' + b"[" * 9000, ""),
        (b"x" * (1 << 20) + b"\n" + ended("a", code=1), "a ended once, with code 1"),
    ],
)
def test_what_is_said(tmp_path: Path, log: bytes, said: str) -> None:
    node = LocalNode(node="n1", role="r", pid=7, at="", directory=tmp_path)
    (node.data / "log").mkdir(parents=True)
    assert last_ends(node) == ""
    (node.data / "log/up-7.log").write_bytes(log)
    assert last_ends(node) == said
