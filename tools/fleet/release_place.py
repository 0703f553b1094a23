"""Releases on this machine: fetched beside the one that runs, checked, switched by a link.

DIR/<name>/<seq>/           a release, whole, with its venv
           <seq>.json       what was signed of it
           <seq>.installed  the digest of its venv
           <seq>.whole      that of all of it, for `boxlink bootstrap`
           <seq>.partial    one that is being fetched
           <seq>.ran        it ran here, before another did
           <seq>.back       a rollback took it back
           current, previous, next
           refused          what was tried last, and did not live
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from synclib.core.names import STATE_DIRECTORY, check_dataset, release_root
from synclib.core.release import STATEMENT_BYTES_MAX, Statement, parse_statement
from synclib.core.signing import KEY_FILE_BYTES_MAX, parse_public
from synclib.disk.atomic import fsync_directory, sync_file_system, write_atomic
from synclib.disk.faults import disk_errors
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.release import check_trusted, read_statement, release_command
from synclib.engine.release_check import check_standing
from synclib.engine.restore import RestoreOptions, restore
from synclib.errors import BoxlinkError, Conflict, Corrupt, Invalid, Missing, Partial, Unavailable
from synclib.lazy.dataset import Dataset
from synclib.store.base import Store
from synclib.store.meter import Meter
from tools.bootstrap.environment import make_environment
from tools.bootstrap.failure import Failure
from tools.bootstrap.links import (
    CURRENT,
    NEXT,
    PREVIOUS,
    SEQ,
    choose,
    link,
    linked_seq,
    note_ran,
    switch,
    take_back,
)
from tools.bootstrap.whole import is_whole, note_whole
from tools.fleet.installed import check_installed, note_installed
from tools.fleet.release_refused import forget, refuse

DEFAULT = Path("/opt/boxlink/release")
TRUSTED = Path("/etc/boxlink/trusted")
_RELEASE = re.compile(r"([^@]+)(?:@([1-9][0-9]{0,17}))?")


@dataclass(frozen=True)
class Trust:
    """``keys``: public ones, hex."""

    keys: Collection[str]
    is_unsigned_allowed: bool = False

    def check(self, statement: Statement) -> None:
        check_trusted(statement, self.keys, is_unsigned_allowed=self.is_unsigned_allowed)


@dataclass(frozen=True)
class Brought:
    statement: Statement
    directory: Path
    is_new: bool
    meter: Meter


def read_trust(files: Collection[Path], *, is_unsigned_allowed: bool) -> Trust:
    """The keys in these files; where none are named, those of this machine."""
    keys = set()
    for path in files or sorted(TRUSTED.glob("*.pub")):
        try:
            with path.open("rb") as file:
                keys.add(parse_public(file.read(KEY_FILE_BYTES_MAX)))
        except OSError as error:
            raise Invalid(f"the key cannot be read: {error.strerror}", path=str(path)) from error
        except Invalid as error:
            error.path = str(path)
            raise
    return Trust(keys, is_unsigned_allowed)


def parse_release(text: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME@SEQ``."""
    found = _RELEASE.fullmatch(text)
    if found is None:
        raise Invalid(f"{text!r} is no release", hint="write NAME or NAME@SEQ")
    return check_dataset(found[1]), int(found[2]) if found[2] else None


def full_name(store: Store, text: str) -> str:
    """``NAME@SEQ``: without a seq, what new nodes take now."""
    name, seq = parse_release(text)
    return f"{name}@{seq or read_statement(store, name, None).seq}"


def fetch(
    store: Store,
    connect: Connect | None,
    name: str,
    seq: int | None,
    into: Path,
    trust: Trust,
    host: Host,
    progress: Progress,
    say: Callable[[str], None] = lambda _: None,
) -> Brought:
    """Bring a seq of a release (None: the current one) into ``into``, checked and ready to run. Nothing that runs is
    touched. One that stands here is checked again: its programs are run next. ``say``: is told what takes a while."""
    statement = read_statement(store, name, seq)
    trust.check(statement)
    place = into.absolute() / name
    with disk_errors(), _alone(place) as lock:
        final = place / str(statement.seq)
        if final.is_dir() and statement_path(place, statement.seq).exists():
            _check_same(place, statement)
            _check_whole(place, statement)
            return Brought(statement, final, False, Meter())
        say(f"release {name} seq {statement.seq} is fetched")
        # Nothing tells what a directory without its statement is.
        _remove(final)
        partial = place / f"{statement.seq}.partial"
        meter = _restore(store, connect, statement, partial, place, host, progress)
        check_standing(partial, statement)
        say(f"release {name} seq {statement.seq}: its programs are installed, which may take a minute")
        try:
            make_environment(partial, final, lock)
        except Failure as error:
            raise Unavailable(error.message, hint=error.hint, path=str(partial)) from error
        note_installed(place, statement.seq, partial)
        note_whole(place, statement.seq, partial)
        write_atomic(statement_path(place, statement.seq), statement.model_dump_json().encode())
        sync_file_system(partial)
        os.rename(partial, final)
        fsync_directory(place)
        return Brought(statement, final, True, meter)


def _restore(
    store: Store,
    connect: Connect | None,
    statement: Statement,
    partial: Path,
    place: Path,
    host: Host,
    progress: Progress,
) -> Meter:
    dataset = Dataset(store, release_root(statement.release))
    manifest = dataset.manifest_at(statement.seq)
    if manifest.digest != statement.digest:
        raise Corrupt(
            f"release {statement.release} seq {statement.seq} is not what was signed",
            hint="see who may write to the store; publish it again",
        )
    # A killed try may have made it, and so it is no part of what is restored.
    shutil.rmtree(partial / "venv", ignore_errors=True)
    running = linked_seq(place, CURRENT)
    seeds = () if running is None else (os.fsencode(place / str(running)),)
    options = RestoreOptions(is_delete=True, is_durable=True, seeds=seeds)
    done = restore(dataset, manifest, connect, partial, host, options, progress)
    if done.problems:
        path, reason = done.problems[0]
        raise Partial(f"{os.fsdecode(path)}: {reason}", hint="correct it, then fetch again", path=str(partial))
    return done.meter


def activate(name: str, seq: int | None, into: Path, trust: Trust) -> tuple[Statement, bool]:
    """Let a release that was fetched (None: the newest of them) be the one that runs, once it is checked again.
    Whether it was another."""
    place = into.absolute() / name
    with disk_errors(), existing(place):
        if seq is None:
            seq = max(seqs(place), default=0)
        statement = _read(place, seq)
        trust.check(statement)
        _check_whole(place, statement)
        forget(place)
        _end_trial(place)  # what a person says stands above it
        return statement, switch(place, seq)


def propose(name: str, seq: int, into: Path, trust: Trust) -> None:
    """Let a release that was fetched be the one that ``boxlink up`` tries next, once it is checked again."""
    place = into.absolute() / name
    with disk_errors(), existing(place):
        statement = _read(place, seq)
        trust.check(statement)
        _check_whole(place, statement)
        choose(place, seq)
        link(place, NEXT, seq)


def pass_trial(place: Path, seq: int) -> bool:
    """It was tried and lives: it is the one that runs from now on, unless a person has ended its trial meanwhile.
    Whether it is."""
    with disk_errors(), existing(place):
        trying = linked_seq(place, NEXT)
        if trying is None:
            return linked_seq(place, CURRENT) == seq
        switch(place, seq)
        if trying == seq:
            _end_trial(place)
        return True


def _end_trial(place: Path) -> None:
    (place / NEXT).unlink(missing_ok=True)


def rollback(name: str, into: Path) -> tuple[int, bool]:
    """Let the release that ran before run again: its seq, and whether it was another that ran. A second time changes
    nothing. While one is on trial that is the one that is proven. The other is refused until it is activated, and a
    ``boxlink up`` that runs it goes over by itself (tools/fleet/renewal.py)."""
    place = into.absolute() / name
    with disk_errors(), existing(place):
        trying, proven = linked_seq(place, NEXT), linked_seq(place, CURRENT)
        if trying is not None and proven is not None and trying != proven:
            _take_back(place, trying)
            _end_trial(place)
            return proven, True
        _end_trial(place)
        seq = linked_seq(place, PREVIOUS)
        if seq is None:
            here = [found for found in seqs(place) if found != linked_seq(place, CURRENT)]
            hint = release_command("activate", place, here[-1]) if here else "no other seq of it is here"
            raise Missing(f"no release {name} ran before", hint=hint, path=str(place))
        running = linked_seq(place, CURRENT)
        is_other = running != seq
        if is_other:
            if running is not None:
                note_ran(place, running)
                _take_back(place, running)
            choose(place, seq)
            link(place, CURRENT, seq)
        return seq, is_other


def _take_back(place: Path, seq: int) -> None:
    refuse(place, seq, "a rollback took it back")
    take_back(place, seq)


def seqs(place: Path) -> list[int]:
    """Those that stand here whole."""
    if not place.is_dir():
        return []
    return sorted(int(path.name) for path in place.iterdir() if SEQ.fullmatch(path.name) and path.is_dir())


def _check_same(place: Path, statement: Statement) -> None:
    if _read(place, statement.seq).digest != statement.digest:
        raise Conflict(
            f"another seq {statement.seq} of release {statement.release} stands here",
            hint="is it the right store? move that directory away",
            path=str(place / str(statement.seq)),
        )


def _check_whole(place: Path, statement: Statement) -> None:
    """Corrupt where it is not as it was signed, or not as it was installed. What a first boot made of its boot tar has
    no chain beside it: there its digest counts, which was noted when it was made of what was checked."""
    directory = place / str(statement.seq)
    if not os.path.lexists(directory / STATE_DIRECTORY) and (whole := is_whole(place, statement.seq)) is not None:
        if not whole or _read(place, statement.seq).boot_sha256 != statement.boot_sha256:
            command = release_command("fetch", place, statement.seq)
            hint = f"{command} brings it anew, once this directory is moved away"
            raise Corrupt("it is not as a first boot made it of what is signed", hint=hint, path=str(directory))
        return
    check_standing(directory, statement)
    check_installed(place, statement.seq)


def _remove(directory: Path) -> None:
    if directory.is_dir():
        aside = directory.with_name(f"{directory.name}.gone")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        shutil.rmtree(aside)


def _read(place: Path, seq: int) -> Statement:
    path = statement_path(place, seq)
    try:
        if not (place / str(seq)).is_dir():
            raise FileNotFoundError
        with path.open("rb") as file:
            statement = parse_statement(file.read(STATEMENT_BYTES_MAX + 1), place.name)
        if statement.seq != seq:
            raise Corrupt(f"it is of seq {statement.seq}")
        return statement
    except FileNotFoundError as error:
        what = f"seq {seq} of release {place.name}" if seq else f"release {place.name}"
        hint = release_command("fetch", place, seq or None)
        raise Missing(f"{what} was not fetched here", hint=hint, path=str(place)) from error
    except BoxlinkError as error:
        error.path = str(path)
        raise


def statement_path(place: Path, seq: int) -> Path:
    """Of what was signed of a seq that stands here."""
    return place / f"{seq}.json"


@contextlib.contextmanager
def existing(place: Path) -> Iterator[None]:
    """Alone with the place of a release that was fetched here. Missing where none was."""
    if not place.is_dir():
        raise Missing(f"release {place.name} was not fetched here", hint=release_command("fetch", place))
    with _alone(place):
        yield


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[int]:
    """Nobody else, a first boot neither, changes this release's place meanwhile, nor while a process lives that was
    given the descriptor."""
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
