"""The steps of a first boot. Each finds what it has done before; killed anywhere and run again, it goes on.

user-data -> statement of the release -> is it pinned or signed -> a newer bootstrap -> boot tar -> unpacked and
made ready beside what runs -> the link is switched -> the role is started in this process's place
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
from .send_log import send_log
from .statement import BYTES_MAX as STATEMENT_BYTES_MAX
from .statement import Statement, check, parse_statement, trusted_keys
from .user_data import BYTES_MAX as USER_DATA_BYTES_MAX
from .user_data import UserData, parse_user_data

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
    log.send = lambda: send_log(log.path, options.root / "bootstrap.sent", objects)
    key = f"release/{told.release}/" + ("current" if told.seq is None else f"signed/{told.seq:020}")
    try:
        said = get(objects, key, STATEMENT_BYTES_MAX)
    except NotThere as error:
        seq = "" if told.seq is None else f"@{told.seq}"
        raise NotThere(
            f"release {told.release}{seq}: there is none in the store",
            f"see user-data, or publish it; `boxlink release ls {told.release}` lists its seqs",
        ) from error
    statement = parse_statement(said, told.release, told.seq)
    is_signed = check(statement, trusted_keys(options.trusted), told.sha256)
    log.say("release", release=statement.release, seq=statement.seq, signed_by=statement.key if is_signed else "")
    if is_signed:
        _replace_itself(options, objects, statement, log)
    place = options.root / "release" / statement.release
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        directory = _bring(place, objects, statement, log)
        _replace(place / f"{statement.seq}.json", said)
        if switch(place, statement.seq):
            log.say("switched", release=statement.release, seq=statement.seq)
    if options.is_run:
        _start(options, told, objects, directory, log)
    return directory


def _read_user_data(options: Options, metadata: Metadata) -> bytes:
    if options.user_data is None:
        return metadata.user_data(USER_DATA_BYTES_MAX)
    try:
        with options.user_data.open("rb") as file:
            return file.read(USER_DATA_BYTES_MAX + 1)
    except OSError as error:
        raise Failure(f"{options.user_data} cannot be read: {error.strerror}") from error


def _replace_itself(options: Options, objects: Objects, statement: Statement, log: Log) -> None:
    """Go on as the release's own bootstrap, once."""
    own, wanted = options.own, statement.bootstrap_sha256
    if own is None or not wanted or REPLACED in os.environ:
        return
    if hashlib.sha256(own.read_bytes()).hexdigest() == wanted:
        return
    path = options.root / f"bootstrap-{wanted[:16]}.pyz"
    data = get(objects, f"release/{statement.release}/bootstrap.pyz", BOOTSTRAP_BYTES_MAX)
    if hashlib.sha256(data).hexdigest() != wanted:
        # So it is while a newer release is being published.
        log.say("this bootstrap goes on: the store has neither it nor the one that is signed", "warning")
        return
    options.root.mkdir(parents=True, exist_ok=True)
    _replace(path, data)
    log.say("a newer bootstrap goes on", sha256=wanted)
    os.execve(sys.executable, [sys.executable, "-I", str(path), *options.words], {**os.environ, REPLACED: "1"})


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Nobody else changes this release's place meanwhile."""
    descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bring(place: Path, objects: Objects, statement: Statement, log: Log) -> Path:
    """The release's directory, whole and ready."""
    from .environment import make_environment
    from .unpack import unpack

    directory = place / str(statement.seq)
    if directory.is_dir():
        return directory
    partial, archive = place / f"{statement.seq}.partial", place / f"{statement.seq}.tar.gz"
    if not _is_right(archive, statement):
        key = f"release/{statement.release}/boot-{statement.seq}.tar.gz"
        deadline = time.monotonic() + BOOT_S
        download(objects, key, archive, statement.boot_sha256, statement.boot_bytes, deadline)
        log.say("fetched", key=key, bytes=statement.boot_bytes)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    unpack(archive, partial)
    if make_environment(partial, directory):
        log.say("the environment is made")
    os.sync()
    os.rename(partial, directory)
    flush(place)
    archive.unlink()
    return directory


def _is_right(archive: Path, statement: Statement) -> bool:
    """Whether an earlier try has brought it."""
    try:
        with archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == statement.boot_sha256
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
    environ["BOXLINK_RELEASE"] = f"{told.release}@{directory.name}"
    if objects.region:
        environ.setdefault("AWS_REGION", objects.region)
    environ["PATH"] = f"{directory / 'venv/bin'}{os.pathsep}{environ.get('PATH', os.defpath)}"
    program = shutil.which(words[0], path=environ["PATH"])
    if program is None:
        raise Failure(f"the release has no program {words[0]}", "its wheels/ must bring it, or this machine")
    log.say("starting", role=told.role, release=told.release, program=program)
    os.execve(program, words, environ)
