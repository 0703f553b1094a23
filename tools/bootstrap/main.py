"""The steps of a first boot. Each finds what it has done before; killed anywhere and run again, it goes on.

user-data -> statement of the release -> is it pinned or signed -> a newer bootstrap -> boot tar -> unpacked and
made ready beside what runs -> the link is switched -> the role is started in this process's place

A later boot starts what `current` names here (:mod:`.standing`), and asks the store only where that is not whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .failure import Failure, NotThere
from .imds import Metadata
from .links import flush, switch
from .log import Log
from .objects import Objects, download, get, open_objects
from .send_log import node_name, send_log
from .standing import note_booted, pin_of, replace, seq_of_current, standing, stands, take_away
from .statement import BYTES_MAX as STATEMENT_BYTES_MAX
from .statement import Statement, check, parse_statement, trusted_keys
from .user_data import BYTES_MAX as USER_DATA_BYTES_MAX
from .user_data import UserData, parse_user_data
from .whole import note_whole

ROOT = Path("/opt/boxlink")
TRUSTED = Path("/etc/boxlink/trusted")
BOOT_S = 1800.0
BOOTSTRAP_BYTES_MAX = 8 << 20
# Set for the newer bootstrap that takes the place of this one, so that it never happens twice.
REPLACED = "BOXLINK_BOOTSTRAP_REPLACED"


@dataclass(frozen=True)
class Options:
    """``user_data``: a file instead of the metadata service's. ``own``: the zipapp that runs, None where it is none."""

    root: Path = ROOT
    user_data: Path | None = None
    trusted: Path = TRUSTED
    is_v1: bool = False
    is_run: bool = True
    own: Path | None = None
    words: Sequence[str] = ()


def boot(options: Options, log: Log) -> Path:
    """Do all of it; does not return where the role is started. The directory of the release."""
    metadata = Metadata(is_v1=options.is_v1)
    told = parse_user_data(_read_user_data(options, metadata))
    objects = open_objects(told.store, metadata)
    log.send = lambda: send_log(log.path, options.root / "bootstrap.sent", objects, node_name(told.node))
    place = options.root / "release" / told.release
    place.mkdir(parents=True, exist_ok=True)
    trusted = trusted_keys(options.trusted)
    with _alone(place):
        seq = seq_of_current(place, told)
        found = None if seq is None else standing(place, seq, trusted, told.sha256)
    if found is not None:
        statement, is_signed, said = *found, b""
    else:
        said = _ask(objects, told.release, seq or told.seq)
        statement = parse_statement(said, told.release, seq or told.seq)
        is_signed = check(statement, trusted, told.sha256 if seq is None else pin_of(statement, told.sha256))
    log.say("release", release=statement.release, seq=statement.seq, signed_by=statement.key if is_signed else "")
    if is_signed:
        _replace_itself(options, objects if said else None, statement, log)
    with _alone(place) as lock:
        if said:
            _bring(place, objects, statement, said, lock, log)
        # Who moved the link meanwhile has found that right.
        if seq is None and switch(place, statement.seq):
            log.say("switched", release=statement.release, seq=statement.seq)
    directory = place / str(statement.seq)
    if options.is_run:
        _start(options, told, objects, directory, log)
    return directory


def _ask(objects: Objects, release: str, seq: int | None) -> bytes:
    """The statement of a seq, or of the store's current one."""
    try:
        return get(
            objects, f"release/{release}/" + ("current" if seq is None else f"signed/{seq:020}"), STATEMENT_BYTES_MAX
        )
    except NotThere as error:
        at = "" if seq is None else f"@{seq}"
        raise NotThere(
            f"release {release}{at}: there is none in the store",
            f"see user-data, or publish it; `boxlink release ls {release}` lists its seqs",
        ) from error


def _read_user_data(options: Options, metadata: Metadata) -> bytes:
    if options.user_data is None:
        return metadata.user_data(USER_DATA_BYTES_MAX)
    try:
        with options.user_data.open("rb") as file:
            return file.read(USER_DATA_BYTES_MAX + 1)
    except OSError as error:
        raise Failure(f"{options.user_data} cannot be read: {error.strerror}") from error


def _replace_itself(options: Options, objects: Objects | None, statement: Statement, log: Log) -> None:
    """Go on as the release's own bootstrap, once; without a store only as one that was brought before."""
    own, wanted = options.own, statement.bootstrap_sha256
    if own is None or not wanted or REPLACED in os.environ:
        return
    if hashlib.sha256(own.read_bytes()).hexdigest() == wanted:
        return
    path = options.root / f"bootstrap-{wanted[:16]}.pyz"
    if not _has_sha256(path, wanted):
        if objects is None:
            return
        data = get(objects, f"release/{statement.release}/bootstrap.pyz", BOOTSTRAP_BYTES_MAX)
        if hashlib.sha256(data).hexdigest() != wanted:
            # So it is while a newer release is being published.
            log.say("this bootstrap goes on: the store has neither it nor the one that is signed", "warning")
            return
        options.root.mkdir(parents=True, exist_ok=True)
        replace(path, data)
    log.say("a newer bootstrap goes on", sha256=wanted)
    os.execve(sys.executable, [sys.executable, "-I", str(path), *options.words], {**os.environ, REPLACED: "1"})


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[int]:
    """Nobody else changes this release's place meanwhile, nor while what was given the descriptor lives."""
    descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _bring(place: Path, objects: Objects, statement: Statement, said: bytes, lock: int, log: Log) -> None:
    """The release's directory, whole and ready. What stands there is believed only if it was made of what was checked
    just now."""
    if stands(place, statement):
        return
    from .environment import make_environment
    from .unpack import unpack

    directory = place / str(statement.seq)
    if directory.exists():
        log.say("what stands here is not this release, and is brought anew", "warning", seq=statement.seq)
    take_away(place, statement.seq)
    partial, archive = place / f"{statement.seq}.partial", place / f"{statement.seq}.tar.gz"
    if not _has_sha256(archive, statement.boot_sha256):
        key = f"release/{statement.release}/boot-{statement.seq}.tar.gz"
        deadline = time.monotonic() + BOOT_S
        download(objects, key, archive, statement.boot_sha256, statement.boot_bytes, deadline)
        log.say("fetched", key=key, bytes=statement.boot_bytes)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    unpack(archive, partial)
    if make_environment(partial, directory, lock):
        log.say("the environment is made")
    note_whole(place, statement.seq, partial)
    replace(place / f"{statement.seq}.json", said)
    os.sync()
    os.rename(partial, directory)
    flush(place)
    archive.unlink()


def _has_sha256(path: Path, sha256: str) -> bool:
    """Whether an earlier try has brought it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _start(options: Options, told: UserData, objects: Objects, directory: Path, log: Log) -> None:
    """Become the role. What runs from here on is the release."""
    data = options.root / "data"
    data.mkdir(parents=True, exist_ok=True)
    known = {"{data}": str(data), "{release}": str(directory)}
    words = list(told.run)
    if not words:
        words = ["boxlink", "up", told.role, "--data", "{data}", "--release", "{release}"]
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    environ = {name: value for name, value in os.environ.items() if name != REPLACED}
    environ["BOXLINK_STORE"] = told.store
    if told.node:
        environ["BOXLINK_NODE"] = told.node
    environ["BOXLINK_RELEASE"] = f"{told.release}@{directory.name}"
    if objects.region:
        environ.setdefault("AWS_REGION", objects.region)
    environ["PATH"] = f"{directory / 'venv/bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    program = shutil.which(words[0], path=environ["PATH"])
    if program is None:
        raise Failure(f"the release has no program {words[0]}", "its wheels/ must bring it, or this machine")
    log.say("starting", role=told.role, release=told.release, program=program)
    note_booted(directory.parent, told)
    os.execve(program, words, environ)
