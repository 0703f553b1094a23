"""The keeper of a lazy mount: ``python -m tools.mount_keeper SPEC READY``, started by ``boxlink mount``.

READY is a pipe: when the mount can be read a line ``ok`` is written to it, else a line that says why not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

from synclib.lazy.keeper import Keeper


def main() -> int:
    spec_path, ready = sys.argv[1], int(sys.argv[2])
    with open(spec_path, "rb") as file:
        spec = json.load(file)
    directory = os.path.dirname(spec_path)
    blob_directory = os.path.join(directory, "blob")
    os.makedirs(blob_directory, exist_ok=True)

    def spawn(device: int, told: int, is_successor: bool) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.mount_worker", spec_path, str(device), str(told)]
        return subprocess.Popen(
            [*command, "next" if is_successor else "first"], stdin=subprocess.DEVNULL, pass_fds=(device, told)
        )

    # An image that is not here as a file is served beside the blob.
    image = spec["prepared"]["image"] or os.path.join(blob_directory, "image")
    keeper = Keeper(os.fsencode(blob_directory), os.fsencode(image), os.fsencode(spec["target"]), spawn)
    try:
        keeper.run(lambda: _say(ready, "ok"))
    except OSError as error:
        print(f"keeper: {error}", file=sys.stderr, flush=True)
        _say(ready, f"{error.errno} {error}")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _say(ready: int, text: str) -> None:
    try:
        os.write(ready, text.encode() + b"\n")
        os.close(ready)
    except OSError:
        pass  # said before


if __name__ == "__main__":
    sys.exit(main())
