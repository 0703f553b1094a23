"""``make test-s3``: the suites that need an S3 server, against a real one.

It is built (once), started on a free port of the loopback, and stopped whatever happens. Arguments go to pytest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from synclib.errors import BoxlinkError
from tools import s3server

SUITES = ("tests/conformance",)


def main() -> int:
    """pytest's exit code; a BoxlinkError's where the server cannot be had."""
    # An exception, so that the server is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with s3server.running() as server:
            environment = {**os.environ, **server.environment(), "BOXLINK_TEST_S3": server.url}
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
                environment.pop(name, None)
            command = [sys.executable, "-m", "pytest", *SUITES, *sys.argv[1:]]
            return subprocess.run(command, env=environment, check=False).returncode
    except BoxlinkError as error:
        print(f"test-s3: {error.message}\n  hint: {error.hint}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
