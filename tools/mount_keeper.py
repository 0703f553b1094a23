"""The keeper of a lazy mount, started by ``boxlink mount``.

    python -m tools.mount_keeper SPEC READY                     mount, and keep
    python -m tools.mount_keeper SPEC go-on DEVICE PID RESTARTS what another program has kept in this process
    python -m tools.mount_keeper SPEC check                     whether this program could do that

READY is a pipe: when the mount can be read a line ``ok`` is written to it, else a line that says why not.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from typing import Any

from synclib.lazy.keeper import Keeper
from synclib.lazy.kept_mount import ErofsMount, KeptMount, TreeMount

_CHECK_S = 20.0


def main() -> int:
    spec_path, verb, *rest = sys.argv[1:]
    if verb == "check":
        worker = importlib.import_module("tools.mount_worker")
        worker.read_spec(spec_path)
        return 0
    directory = os.path.dirname(spec_path)
    keeper = _keeper(spec_path, directory)
    try:
        if verb == "go-on":
            device, pid, restarts = map(int, rest)
            keeper.go_on(device, pid, restarts)
        else:
            ready = int(verb)
            keeper.run(lambda: _say(ready, "ok"))
    except OSError as error:
        print(f"keeper: {error}", file=sys.stderr, flush=True)
        if verb != "go-on":
            _say(int(verb), f"{error.errno} {error}")
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _keeper(spec_path: str, directory: str) -> Keeper:
    spec = _read(spec_path)

    def spawn(device: int, told: int, is_successor: bool, restarts: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tools.mount_worker", spec_path, str(device), str(told)]
        words = ["next" if is_successor else "first", str(restarts)]
        return subprocess.Popen([*command, *words], stdin=subprocess.DEVNULL, pass_fds=(device, told))

    def renew(device: int, worker: int, restarts: int) -> None:
        """As the program that the spec names now."""
        python = _read(spec_path).get("python", sys.executable)
        command = [python, "-m", "tools.mount_keeper", spec_path]
        try:
            subprocess.run([*command, "check"], stdin=subprocess.DEVNULL, check=True, timeout=_CHECK_S)
            os.execv(python, [*command, "go-on", str(device), str(worker), str(restarts)])
        except (OSError, subprocess.SubprocessError) as error:
            print(f"keeper: {python} cannot go on with it, so this one does: {error}", file=sys.stderr, flush=True)

    return Keeper(_kept(spec, os.path.join(directory, "blob")), spawn, renew)


def _kept(spec: dict[str, Any], blob_directory: str) -> KeptMount:
    prepared, target = spec["prepared"], os.fsencode(spec["target"])
    if prepared.get("mode") == "fuse":
        return TreeMount(target)
    os.makedirs(blob_directory, exist_ok=True)
    # An image that is not here as a file is served beside the blob.
    image = os.fsencode(prepared["image"] or os.path.join(blob_directory, "image"))
    return ErofsMount(os.fsencode(blob_directory), image, target)


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        found: dict[str, Any] = json.load(file)
    return found


def _say(ready: int, text: str) -> None:
    try:
        os.write(ready, text.encode() + b"\n")
        os.close(ready)
    except OSError:
        pass  # said before


if __name__ == "__main__":
    sys.exit(main())
