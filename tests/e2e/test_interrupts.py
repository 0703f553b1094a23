"""A signal while the store does not answer: the verb ends, says so, and leaves nobody behind."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
from pathlib import Path

import pytest

from synclib.store.open import open_store
from tests.e2e.boxlink_process import Machine, started, wait_for_end
from tests.kit import read_tree
from tools.bench.far_process import environment, serving
from tools.bench.far_server import URL, Answer, FarServer, Request

# Far below any deadline of the store (20 s of silence), far above the second that it takes.
_ENDS_S = 10.0


class Stalling(FarServer):
    """Answers all but what is asked of packs, which it notes."""

    def __init__(self, place: Path) -> None:
        super().__init__(open_store(f"file://{place}/store", {})[0])
        self.lie = "stalled"
        self.is_asked = threading.Event()

    def _answer(self, request: Request) -> Answer:
        if "/pack/" in request.key:
            self.is_asked.set()
        return super()._answer(request)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.run("init")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"large{number}").write_bytes(random.Random(number).randbytes(40 << 20))
    machine.run("publish", "covers", "source")
    return machine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "words", [("cat", "covers", "large1"), ("restore", "covers", "out", "--json"), ("verify", "covers", "--data")]
)
def test_a_signal_while_packs_do_not_come(machine: Machine, words: tuple[str, ...], number: int) -> None:
    server = Stalling(machine.place)
    with serving(server) as endpoint:
        machine.environment |= environment(endpoint) | {"BOXLINK_STORE": URL}
        with started(machine, *words) as process:
            assert server.is_asked.wait(60)
            # To it alone: those that it started are its own affair.
            process.send_signal(number)
            out, err = process.communicate(timeout=_ENDS_S)
            assert wait_for_end(process.pid) == set()
    assert process.returncode == 128 + number
    if "--json" in words:
        assert json.loads(out)["error"]["kind"] == "interrupted"
        assert err.strip() == b""
    else:
        assert err.splitlines()[-2:] == [
            b"boxlink: interrupted: interrupted",
            b"  hint: nothing is broken: run the same command again",
        ]
        assert out == b""


@pytest.mark.parametrize("words", [("ls", "covers"), ("log", "covers"), ("publish", "covers", "source")])
def test_ctrl_c_while_nothing_is_answered(machine: Machine, words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        machine.environment |= environment(endpoint) | {"BOXLINK_STORE": URL}
        with started(machine, *words) as process:
            silent.settimeout(60)
            with silent.accept()[0]:
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=_ENDS_S)
    assert process.returncode == 130
    assert err.startswith(b"boxlink: interrupted: interrupted\n")


def test_restore_goes_on_where_it_was_interrupted(machine: Machine) -> None:
    server = Stalling(machine.place)
    with serving(server) as endpoint:
        far = environment(endpoint) | {"BOXLINK_STORE": URL}
        machine.environment |= far
        with started(machine, "restore", "covers", "out") as process:
            assert server.is_asked.wait(60)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=_ENDS_S)
        server.lie = ""
        machine.run("restore", "covers", "out")
    assert read_tree(machine.place / "out") == read_tree(machine.place / "source")
