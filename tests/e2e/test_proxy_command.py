"""``boxlink proxy`` as a process: what it prints, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import pytest

COMMAND = [sys.executable, "-c", "from tools.cli import main; main()", "proxy", "--store", "memory://test"]


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=30)


def test_it_says_where_it_listens_serves_and_ends_with_sigterm() -> None:
    arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            with pytest.raises(urllib.error.HTTPError) as failed:
                urllib.request.urlopen(f"http://{ready['listen']}/tiles/1", timeout=10)
            with failed.value as answer:
                assert (answer.code, json.load(answer)["error"]["reason"]) == (503, "no-backend")
            with urllib.request.urlopen(f"http://{ready['admin']}/healthz", timeout=10) as health:
                assert json.load(health) == {"status": "ok", "backends": 0, "store_readable": True}
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["stopped"]
    assert (process.returncode, err) == (0, "")


def test_check_says_what_would_be_allowed_and_exits() -> None:
    done = run(["--listen", "127.0.0.1:0", "--check", "--json", "--allow", "10.1.0.0/16"])
    assert done.returncode == 0
    assert json.loads(done.stdout)["allow"] == ["10.1.0.0/16"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "8080"],
        ["--listen", "127.0.0.1:99999"],
        ["--listen", "127.0.0.1:0", "--admin", "x"],
        ["--listen", "127.0.0.1:0", "--allow", "10.0.0.1/8"],
        ["--listen", "127.0.0.1:0", "--poll", "0"],
        ["--listen", "192.0.2.1:80"],
    ],
)
def test_wrong_settings_are_invalid(arguments: list[str]) -> None:
    done = run([*arguments, "--json"])
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "invalid"
