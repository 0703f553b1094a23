"""`boxlink` as a process whose EC2 and EBS are the stand-in, with a store of files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.aws.refusal import NoAnswer
from tests.aws.standin import Identity, Standin

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from tools.entry import main; main()"]


class Publisher:
    """One dataset, published from a directory, and somebody's credentials."""

    def __init__(self, place: Path, standin: Standin, who: Identity | None = None) -> None:
        self.place = place
        self.standin = standin
        self.who = who
        self.source = place / "source"
        self.source.mkdir(parents=True)
        self.store = f"file://{place}/store"
        self.write(*(f"f{number}" for number in range(12)))
        self.run("init")
        self.run("publish", "covers", self.source)

    def write(self, *names: str) -> None:
        for name in names:
            (self.source / name).write_bytes(random.Random(name).randbytes(300_000))

    def environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "BOXLINK_"))}
        return {
            **own,
            **self.standin.environment(self.who),
            "PYTHONPATH": str(ROOT),
            "BOXLINK_STORE": self.store,
            "BOXLINK_NODE": "n1",
            "XDG_STATE_HOME": str(self.place / "state"),
            "XDG_CACHE_HOME": str(self.place / "cache"),
            "HOME": str(self.place),
        }

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        command = [*COMMAND, *map(str, words)]
        return subprocess.Popen(
            command, env=self.environment(), cwd=self.place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *words: object, code: int = 0) -> bytes:
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, (words, process.returncode, out, err)
        assert b"Traceback" not in err, err.decode()
        return out

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        found = json.loads(self.run(*words, "--json", code=code))
        assert isinstance(found, dict)
        return found

    def run_killed(self, operation: str, count: int, *words: object, is_done: bool) -> None:
        """kill -9 at the ``count``th request of a kind: just before it is carried out, or when it is done already."""
        left = [count]

        def reached(now: str, done: bool) -> None:
            if (now, done) == (operation, is_done):
                left[0] -= 1
                if left[0] == 0:
                    process.kill()
                    raise NoAnswer

        with self.standin.locked():
            process = self.start(*words)
            self.standin.script.reached = reached
        process.communicate(timeout=120)
        self.standin.script.reached = lambda operation, is_done: None
        assert left[0] <= 0, "the command ended before it came there"
        assert process.returncode < 0

    def create(self, code: int = 0) -> dict[str, Any]:
        """The newest seq's snapshot."""
        return self.json("snapshot", "create", "covers", "--driver", "ebs", code=code)
