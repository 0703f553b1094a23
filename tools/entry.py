"""Where the ``boxlink`` command begins: a Ctrl-C while it is still importing ends it without a traceback."""

from __future__ import annotations

import os
import signal


def main() -> None:
    # Until the command has its own, which say more (tools/cli).
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from tools.cli import main as run

    run()
