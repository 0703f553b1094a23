"""The keeper of a lazy mount, started by ``boxlink mount``.

    python -m tools.mount_keeper STATE ahead READY              mount, and keep, what is to be said on standard input
    python -m tools.mount_keeper SPEC go-on DEVICE PID RESTARTS what another program has kept in this process
    python -m tools.mount_keeper SPEC adopt DEVICE READY        what the service manager kept of one that was killed
    python -m tools.mount_keeper SPEC check                     whether this program could go on

READY is a pipe: when the mount can be read a line ``ok`` is written to it, else a line that says why not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synclib.lazy.former_worker import former_workers
from synclib.lazy.keeper import Keeper
from synclib.lazy.kept_mount import ErofsMount, KeptMount, PutMount, ReplaceableMount, TreeMount
from tools.mount_ahead import AHEAD, LOG, REPLACED, WorkerAhead, log_to

_CHECK_S = 20.0
DEVICE_PREFIX = "boxlink-mount-"  # of the name that a connection has in the service manager's store


def main() -> int:
    spec_path, verb, *rest = sys.argv[1:]
    if verb == AHEAD:
        return _keep_what_comes(spec_path, int(rest[0]))
    if verb == "check":
        worker = importlib.import_module("tools.mount_worker")
        worker.read_spec(spec_path)
        return 0
    keeper = _keeper(spec_path)
    if verb == "adopt":
        device, ready = map(int, rest)
        former = former_workers(Path(spec_path).parent)
        return _kept_until_the_end(
            spec_path, keeper, lambda: keeper.adopt(device, former, lambda: _say(ready, "ok")), ready
        )
    device, pid, restarts = map(int, rest)
    return _kept_until_the_end(spec_path, keeper, lambda: keeper.go_on(device, pid, restarts))


def _keep_what_comes(state: str, ready: int) -> int:
    """Nothing, where whoever started it needs no mount."""
    ahead = WorkerAhead(state)
    spec_path = os.fsdecode(sys.stdin.buffer.readline().rstrip(b"\n"))
    if not spec_path:
        return 0
    log_to(os.path.join(os.path.dirname(spec_path), LOG))
    keeper = _keeper(spec_path, ahead)
    return _kept_until_the_end(spec_path, keeper, lambda: keeper.run(lambda: _say(ready, "ok")), ready)


def _kept_until_the_end(spec_path: str, keeper: Keeper, keep: Callable[[], None], ready: int | None = None) -> int:
    """What is left mounted is known, too: ``boxlink status`` says that nobody serves it."""
    try:
        keep()
    except OSError as error:
        print(f"keeper: {error}", file=sys.stderr, flush=True)
        if ready is not None:
            _say(ready, str(error) if error.errno is None else f"{error.errno} {error}")
        return 1
    finally:
        if not keeper.is_left:
            shutil.rmtree(os.path.dirname(spec_path), ignore_errors=True)
    return 0


def device_name(directory: str) -> str:
    """What the connection of a mount's directory is called in the service manager's store."""
    return DEVICE_PREFIX + os.path.basename(directory)


def forget_device(name: str) -> None:
    """Nobody shall hold that connection open any more (sd_notify(3), FDSTOREREMOVE)."""
    _notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _notify(state: str, *descriptors: int) -> None:
    """Only where there is a service manager is anything imported for it."""
    if "NOTIFY_SOCKET" in os.environ:
        from tools.notify import notify

        notify(state, descriptors)


def _keeper(spec_path: str, ahead: WorkerAhead | None = None) -> Keeper:
    directory = os.path.dirname(spec_path)
    spec = _read(spec_path)
    waiting = [] if ahead is None else [ahead]

    def spawn(device: int, told: int, is_successor: bool, restarts: int) -> subprocess.Popen[bytes]:
        words = ["next" if is_successor else "first", str(restarts)]
        if waiting and (first := waiting.pop()).begin(device, told, [spec_path, *words]):
            return first.process
        command = [sys.executable, "-m", "tools.mount_worker", spec_path, *words, str(device), str(told)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(device, told))

    def renew(device: int, worker: int, restarts: int) -> None:
        """As the program that the spec names now."""
        python = _read(spec_path).get("python", sys.executable)
        command = [python, "-m", "tools.mount_keeper", spec_path]
        try:
            subprocess.run([*command, "check"], stdin=subprocess.DEVNULL, check=True, timeout=_CHECK_S)
            os.execv(python, [*command, "go-on", str(device), str(worker), str(restarts)])
        except (OSError, subprocess.SubprocessError) as error:
            print(f"keeper: {python} cannot go on with it, so this one does: {error}", file=sys.stderr, flush=True)

    def store(device: int | None) -> None:
        name = device_name(directory)
        if device is None:
            forget_device(name)
        else:
            _notify(f"FDSTORE=1\nFDNAME={name}", device)

    return Keeper(_kept(spec, directory), spawn, renew, store)


def _kept(spec: dict[str, Any], directory: str) -> KeptMount:
    made, place = _made(spec, os.path.join(directory, "blob")), spec.get("put_on", "")
    if place:
        return PutMount(made, os.fsencode(spec["target"]), os.fsencode(place))
    return ReplaceableMount(made, os.path.join(directory, REPLACED))


def _made(spec: dict[str, Any], blob_directory: str) -> KeptMount:
    prepared, target = spec["prepared"], os.fsencode(spec["target"])
    if prepared.get("mode") == "fuse":
        return TreeMount(target)
    # Where it is there it is not looked at: nobody may answer there yet.
    with contextlib.suppress(FileExistsError):
        os.mkdir(blob_directory)
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
