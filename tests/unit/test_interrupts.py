"""A verb ends within a second or two of a signal, whatever its main thread came to wait for."""

import subprocess
import sys

import pytest

# The other threads run only where this one waits: the clock hears of the signal after its handlers are gone.
_HANGS = """
import os, signal, sys, time
from tools.interrupts import Interrupts
interrupts = Interrupts(lambda: print("interrupted", flush=True))
interrupts.bound()
time.sleep(0.2)
sys.setswitchinterval(60)
try:
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)
except KeyboardInterrupt:
    signal.signal(signal.{name}, lambda *_: None)
    {says}
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("says", ["pass", "interrupts.say()"])
def test_who_hangs_while_it_gives_up_is_ended(name: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGS.format(name=name, says=says)], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert (done.stdout, done.stderr) == (b"interrupted\n", b"")
