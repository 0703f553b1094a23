"""File events: what their library logs at an ordinary stop reaches nobody's terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What is left of an emitter that was stopped while an event was on its way: its thread looks once more.
SCRIPT = """
import sys
from watchdog.events import FileSystemEventHandler
from synclib.disk.file_events import file_events
observer = file_events()
observer.schedule(FileSystemEventHandler(), sys.argv[1])
observer.start()
(emitter,) = observer.emitters
observer.stop()
observer.join()
emitter.queue_events(0)
"""


def run(place: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout + done.stderr


def test_an_event_that_comes_while_it_is_stopped_is_not_told(tmp_path: Path) -> None:
    assert run(tmp_path, SCRIPT) == ""


def test_a_program_that_has_set_up_logging_still_hears_it(tmp_path: Path) -> None:
    assert "InotifyEmitter" in run(tmp_path, f"import logging\nlogging.basicConfig()\n{SCRIPT}")
