"""The worker of a lazy mount, started by its keeper: ``python -m tools.mount_worker SPEC first|next N DEVICE READY``.

N: how many times one was started because the one before had died. ``STATE ahead``: all that comes on standard input.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from synclib.clock import SystemClock, SystemEntropy
from synclib.core import fuse
from synclib.engine.host import Connect, Host
from synclib.engine.mount import serve
from synclib.engine.mount_control import MountControl
from synclib.errors import BoxlinkError
from synclib.lazy.former_worker import note_worker, outlive
from synclib.lazy.fuse_server import FuseServer
from synclib.lazy.keeper import HAS_CAUGHT_UP, LIVES
from tools.mount_control import answer_for_ever
from tools.mount_spec import READY, MountSpec

_SAY_EVERY_S = 10.0
_SAY_FIRST_S, _SAY_LIFE_EVERY_S = 0.01, 1.0
# A thread that hashes what came in the background gives way to one that answers a reader after so long.
_SWITCH_S = 0.0005


def main() -> int:
    keeper = os.getppid()
    orders = _orders(sys.argv[1:])
    if orders is None:
        return 0
    (spec_path, order, restarts), device, ready = orders
    spec = read_spec(spec_path)
    directory = Path(spec_path).parent
    # Before it says that it answers: then its keeper lives, and who goes on after that finds this process.
    note_worker(directory)
    sys.setswitchinterval(_SWITCH_S)
    # The keeper says when it is over, by ending the mount; a terminal's Ctrl-C is the keeper's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    retiring = threading.Event()
    # Waited for by a thread of its own: a handler would run in the main thread, which waits for others, and which the
    # kernel need not choose to wake. Blocked before there are any.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_end, args=(retiring,), name="SIGTERM", daemon=True).start()
    orphan = (keeper, directory, lambda: _ask_again(device))
    threading.Thread(target=outlive, args=orphan, name="keeper", daemon=True).start()
    report = _Reporter()
    host = Host(spec.node, SystemClock(), SystemEntropy(), Path(spec.state), Path(spec.cache))
    serve(
        spec.prepared,
        Connect(spec.store, tuple(spec.s3.items())),
        host,
        device,
        spec.background,
        directory / READY,
        is_successor=order == "next",
        is_start_up=spec.is_start_up,
        restarts=int(restarts),
        cache_bytes_max=spec.cache_bytes_max,
        retiring=retiring,
        on_retired=lambda: os._exit(0),
        on_ready=lambda control, server: _begin(ready, directory, control, server),
        on_error=report,
    )
    return 0


def _orders(words: list[str]) -> tuple[list[str], int, int] | None:
    """The path of the spec, first or next, and N; the device; the pipe. None where nothing is to be served."""
    if words[1] != "ahead":
        *said, device, ready = words
        return said, int(device), int(ready)
    # What else it takes to open a store and read from it is imported meanwhile.
    importlib.import_module("synclib.store.s3")
    from tools.mount_ahead import LOG, log_to, orders_of_worker

    orders = orders_of_worker()
    if orders is not None:
        log_to(os.path.join(os.path.dirname(orders[0][0]), LOG))
    return orders


def _wait_for_end(retiring: threading.Event) -> None:
    signal.sigwait({signal.SIGTERM})
    retiring.set()


def _ask_again(device: int) -> None:
    with contextlib.suppress(OSError):  # before Linux 6.9; or the mount is gone
        os.write(device, fuse.resend_notice())


def read_spec(path: str) -> MountSpec:
    return msgspec.json.decode(Path(path).read_bytes(), type=MountSpec)


def _begin(life: int, directory: Path, control: MountControl, server: FuseServer) -> None:
    """The mount can be read, and asked how it does."""
    threading.Thread(target=answer_for_ever, args=(directory, control), daemon=True).start()
    os.write(life, LIVES)
    threading.Thread(target=_say_that_it_lives, args=(life, server), name="life", daemon=True).start()


def _say_that_it_lives(life: int, server: FuseServer) -> None:
    """To the keeper, for as long as there is one, every second; at first more often, since it may be short."""
    os.set_blocking(life, False)
    pause_s = _SAY_FIRST_S
    with contextlib.suppress(BrokenPipeError):
        while True:
            if server.is_taking():
                with contextlib.suppress(BlockingIOError):  # the keeper stands still
                    os.write(life, HAS_CAUGHT_UP if server.has_caught_up() else LIVES)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _SAY_LIFE_EVERY_S)


class _Reporter:
    """Says on stderr what went wrong, at most every ten seconds: while a store is away every read does."""

    def __init__(self) -> None:
        self._said_at = 0.0
        self._unsaid = 0

    def __call__(self, error: BoxlinkError) -> None:
        now = time.monotonic()
        if self._said_at and now - self._said_at < _SAY_EVERY_S:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} errors since the last line)" if self._unsaid else ""
        self._said_at, self._unsaid = now, 0
        print(f"{error.kind}: {error.key or error.path}: {error.message}{more}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
