"""Where the ``boxlink`` command begins: a Ctrl-C while it is still importing ends it without a traceback."""

from __future__ import annotations

import os
import signal


def main() -> None:
    # Where one of the three is closed, what is opened first must not get its number, nor what others write to it.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # Until the command has its own, which say more (tools/cli).
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from tools.cli import main as run

    run()
