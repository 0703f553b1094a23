"""Nodes on this machine: each a detached ``boxlink up`` with a directory, state, cache and ports of its own.

    DIR/<node>/node.json        what is known of it
               data/ state/ cache/
               up.log           what ``boxlink up`` itself had to say

Killed anywhere and run again, :func:`start` finds what is up by the lock that ``up`` holds, and starts nothing twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from synclib.clock import Clock, Entropy
from synclib.core.names import check_node
from synclib.disk.faults import disk_errors
from synclib.disk.mounts import mounts_below
from synclib.errors import Conflict, Corrupt, Invalid, Unavailable
from tools.fleet.find_role import ADDRESS, Place, check_values, find_role, role_file
from tools.fleet.free_port import free_port
from tools.fleet.node_file import LocalNode, read_node, write_node
from tools.fleet.one_up import holder
from tools.fleet.pins import write_pins
from tools.fleet.process_id import process_id
from tools.fleet.programs import boxlink_of
from tools.fleet.same_node import check_pinned, check_same
from tools.notify import READY, SOCKET

READY_S = 60.0
_VERB_S = 60.0
_LAST_WORDS_BYTES = 2000
_VALUES_BYTES_MAX = 32 << 10  # as JSON: half of what is read of a node's file
_said: set[Path] = set()  # whose files could not be read


@dataclass(frozen=True)
class Wish:
    """What a node shall be. ``role``: as for ``boxlink up``. ``release``: ``NAME@SEQ``, and the directory where it
    stands. ``pins``: datasets that it asks for at a seq; ``is_from_snapshot``: by way of a volume. ``trust``: files of
    the keys that releases which it follows may be signed by; none: this machine's."""

    role: str
    release: str = ""
    release_directory: Path | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, int] = field(default_factory=dict)
    is_from_snapshot: bool = False
    trust: tuple[Path, ...] = ()


def start(
    directory: Path, node: str, wish: Wish, environ: Mapping[str, str], clock: Clock, entropy: Entropy
) -> tuple[LocalNode, bool]:
    """The node ``node`` below ``directory``, running: its processes are started, not yet ready. Whether it was started
    by this call.

    ``environ``: what it gets beside its own names; the store is in it. Conflict where a node of that name is up as
    something else, or at other seqs; Unavailable where it does not come up.
    """
    place = directory.resolve() / check_node(node)
    check_wish(place, wish)  # what cannot be started leaves no directory
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        known = read_node(place)
        store = environ.get("BOXLINK_STORE", "")
        wanted = wanted_node(place, wish, known, clock, entropy).model_copy(update={"store": store})
        if known is not None and (running := _running(known)) is not None:
            check_same(running, wanted, find_role(wish.role, wish.release_directory).values)
            check_pinned(running, wish.pins)
            return running, False
        write_pins(place / "data", wish.pins, is_from_snapshot=wish.is_from_snapshot)
        write_node(wanted)
        try:
            return _launch(wanted, environ), True
        except Unavailable:
            # Whoever was killed here before may have started one, which held its lock only after we had looked.
            running = _running(wanted)
            if running is None:
                raise
            if known is not None:
                running = known.model_copy(update={"pid": running.pid, "start_time": running.start_time})
            write_node(running)
            check_same(running, wanted, find_role(wish.role, wish.release_directory).values)
            return running, False


def check_wish(place: Path, wish: Wish) -> None:
    """Invalid, or Missing, for what ``boxlink up`` would not take: a role that is not there, a value that it does not
    have, an address that is none, more than can be noted. ``place``: the node's directory, there or not."""
    role = find_role(wish.role, wish.release_directory)
    check_values(role, Place(place / "data", place.name, wish.release_directory), wish.values)
    size = len(json.dumps(dict(wish.values)))
    if size > _VALUES_BYTES_MAX:
        raise Invalid(f"the values take {size} bytes, of {_VALUES_BYTES_MAX} at most", hint="name a file in them")


def nodes(directory: Path) -> list[LocalNode]:
    """Those below ``directory`` by name, whether they run or not. One whose file cannot be read is said, once, and
    passed over: it must not stop work on the others. So is a copy of one, whose file names another directory, and what
    leads elsewhere: neither is to be ended or taken away as that node."""
    if not directory.is_dir():
        return []
    return [node for path in sorted(directory.resolve().iterdir()) if (node := _readable(path)) is not None]


def _readable(place: Path) -> LocalNode | None:
    try:
        node = read_node(place)
        if node is not None and (place.is_symlink() or node.node != place.name):
            what = "a link" if place.is_symlink() else f"a copy of {node.node}"
            raise Corrupt(f"this is {what}, and no node", path=str(place), hint="move it out of there")
        return node
    except Corrupt as error:
        if place not in _said:
            _said.add(place)
            print(
                f"boxlink: {error.kind}: {error.path}: {error.message}; it is passed over\n  hint: {error.hint}",
                file=sys.stderr,
            )
        return None


def is_alive(node: LocalNode) -> bool:
    """Whether its ``boxlink up`` runs; also where whoever started it was killed before it was noted."""
    return _running(node) is not None


def stop(node: LocalNode, drain_s: float) -> bool:
    """Let a node's processes drain and end, and kill what has not after ``drain_s`` seconds. Returns when they have
    ended: whether all did by themselves. Its directory stays."""
    with _alone(node.directory):
        running = _running(node)
        return running is None or running.process.end(drain_s)


def remove(node: LocalNode, release: Callable[[], list[str]] = list) -> list[str]:
    """Take a stopped node's mounts, its volumes and its directory away. Conflict while it runs.

    ``release``: lets its volumes go, and names those that are not gone yet: these are returned, and its directory stays
    until a later call, for a volume may be an image below it. So is what somebody else has mounted there, whose files
    would go with it.
    """
    from tools.demo.mounts import end_mounts

    with _alone(node.directory):
        if _running(node) is not None:
            raise Conflict(f"node {node.node} runs", hint="stop it first", path=str(node.directory))

        def boxlink(*words: str) -> dict[str, object]:
            command = [str(boxlink_of(_release_of(node))), *words, "--json"]
            environ = _environment(node, os.environ)
            try:
                done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=_VERB_S)
            except subprocess.TimeoutExpired as error:
                raise Unavailable(f"boxlink {words[0]} of node {node.node} does not end") from error
            found: dict[str, object] = json.loads(done.stdout or b"{}")
            return found

        if node.data.is_dir():
            end_mounts(node.data, boxlink)
        if left := [*release(), *(f"mount {place}" for place in mounts_below(node.directory))]:
            return left
        with disk_errors():
            # What names it goes last: whoever is killed here finds it again.
            for path in node.directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
            shutil.rmtree(node.directory)
        return []


def _running(node: LocalNode) -> LocalNode | None:
    """The node with the process that runs it; None where none does."""
    if node.pid and node.process.is_alive():
        return node
    found = holder(node.data, node.role)
    return None if found is None else node.model_copy(update={"pid": found.pid, "start_time": found.start_time})


def wanted_node(place: Path, wish: Wish, known: LocalNode | None, clock: Clock, entropy: Entropy) -> LocalNode:
    """What a node is to be that was ``known`` before; its ports stay."""
    role = find_role(wish.role, wish.release_directory)
    kept = {} if known is None else known.ports
    taken = {port for other in nodes(place.parent) if other.node != place.name for port in other.ports.values()}
    ports: dict[str, int] = {}
    for name, value in role.values.items():
        if ADDRESS.fullmatch(value) and name not in wish.values:
            ports[name] = kept.get(name) or free_port(taken | set(ports.values()), entropy)
    file = role_file(wish.role, wish.release_directory)
    return LocalNode(
        node=place.name,
        role=role.role,
        role_file="" if file is None else str(file.resolve()),
        release=wish.release,
        release_directory=str(wish.release_directory or ""),
        values=dict(wish.values),
        trust=[os.path.abspath(path) for path in wish.trust],
        ports=ports,
        at=datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        directory=place,
    )


def _launch(node: LocalNode, environ: Mapping[str, str]) -> LocalNode:
    """Start its ``boxlink up``, note who it is, and wait until it has started the role's processes."""
    values = {**node.values, **node.addresses}
    command = [str(boxlink_of(_release_of(node))), "up", node.role_file or node.role, "-q"]
    command += ["--data", str(node.data), "--node", node.node]
    command += ["--release", node.release_directory] if node.release_directory else []
    command += [word for path in node.trust for word in ("--trust", path)]
    command += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    with _ready_socket() as (ready, address), open(node.directory / "up.log", "wb") as log:
        process = subprocess.Popen(
            command,
            env={**_environment(node, environ), SOCKET: address},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.directory,
            start_new_session=True,
        )
        try:
            own = process_id(process.pid)
            node = node.model_copy(update={"pid": own.pid, "start_time": own.start_time})
            write_node(node)
            is_ready = _wait_ready(ready, process.pid)
        except ProcessLookupError:
            is_ready = False
    if is_ready:
        # It is nobody's child from now on that would wait for it.
        process.returncode = 0
        return node
    process.kill()
    process.wait()
    said = (node.directory / "up.log").read_text(errors="replace")[-_LAST_WORDS_BYTES:].strip()
    raise Unavailable(
        f"node {node.node} did not come up: {said or 'it said nothing'}",
        hint="correct what it names, then run the same command again",
        path=str(node.directory),
    )


def _release_of(node: LocalNode) -> Path | None:
    return Path(node.release_directory) if node.release_directory else None


def _environment(node: LocalNode, environ: Mapping[str, str]) -> dict[str, str]:
    own = {
        "BOXLINK_NODE": node.node,
        "BOXLINK_RELEASE": node.release,
        "XDG_STATE_HOME": str(node.directory / "state"),
        "XDG_CACHE_HOME": str(node.directory / "cache"),
    }
    return {**environ, **own}


@contextlib.contextmanager
def _ready_socket() -> Iterator[tuple[socket.socket, str]]:
    """A socket, and its address for sd_notify(3): the kernel finds a free name (unix(7), autobind)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind("")
        name: bytes = ready.getsockname()
        yield ready, "@" + name[1:].decode()


def _wait_ready(ready: socket.socket, pid: int) -> bool:
    """Until it says that it is ready; False where it ends, or does not say so in time."""
    pidfd = os.pidfd_open(pid)
    try:
        came = select.select([ready.fileno(), pidfd], [], [], READY_S)[0]
        return ready.fileno() in came and READY.encode() in ready.recv(4096)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Nobody else starts or stops this node meanwhile."""
    try:
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError as error:
        raise Conflict(f"node {place.name} was removed", path=str(place)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
