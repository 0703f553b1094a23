"""Releases: a directory published as a dataset of its own, with a signed statement of what may run.

The order of writes is what makes it safe to be killed anywhere: the dataset, the boot tar, the bootstrap, the statement
of the seq; ``current`` comes last, by compare-and-swap. Before that no node takes the new seq; run again it goes on.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from synclib.core import names
from synclib.core.release import STATEMENT_BYTES_MAX, Statement, parse_statement
from synclib.core.signing import Signer, is_signed
from synclib.engine.boot_tar import write_boot_tar
from synclib.engine.host import Connect, Host, Progress
from synclib.engine.publish import PublishOptions, publish
from synclib.errors import Ambiguous, BoxlinkError, Conflict, Corrupt, Invalid, Missing, Partial
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.store.base import Fetched, Store
from synclib.store.meter import Meter

VENV = "venv"  # made where a release stands, so that none may bring it
_TRIES = 10
_CURRENT_BYTES_MAX = 1 << 20  # also one that is too long to be right is put right


@dataclass(frozen=True)
class Published:
    statement: Statement
    files: int
    plain_bytes: int
    is_new: bool  # whether the directory had changed
    is_current: bool  # whether new nodes take it: not where somebody has published a newer one meanwhile
    meter: Meter


def publish_release(
    store: Store,
    connect: Connect | None,
    name: str,
    directory: Path,
    signer: Signer | None,
    bootstrap: bytes,
    host: Host,
    progress: Progress,
) -> Published:
    """Make ``directory`` a seq of the release ``name``, and that its current one.

    ``bootstrap``: the program of first boots, empty for none. Invalid for a directory that cannot be a release, Partial
    where not all of it could be read: then nothing is signed.
    """
    dataset = Dataset(store, names.release_root(name))
    _check_directory(directory)
    _check_key(store, name, signer)
    options = PublishOptions(is_mirror=True, allow_delete=True)
    done = publish(dataset, connect, os.fsencode(directory.absolute()), host, options, progress)
    if done.skipped:
        path, reason = done.skipped[0]
        raise Partial(
            f"{len(done.skipped)} files could not be read, so this is no release: {os.fsdecode(path)}: {reason}",
            hint="make them readable, then publish again",
            path=str(directory),
        )
    statement = _statement(dataset, name, done.seq, done.digest, signer, bootstrap, host)
    is_current = _move_current(store, statement)
    return Published(statement, done.files, done.plain_bytes, done.is_new, is_current, done.meter)


def _check_directory(directory: Path) -> None:
    try:
        found = os.listdir(directory)
    except OSError as error:
        raise Invalid(f"{directory} cannot be read: {error.strerror}", path=str(directory)) from error
    if not found:
        raise Invalid("an empty directory is no release", path=str(directory))
    if VENV in found:
        raise Invalid(
            f"a release brings no {VENV}: it is made from wheels/ where it is used",
            hint=f"move {VENV} out, put wheels into wheels/",
            path=str(directory),
        )


def _check_key(store: Store, name: str, signer: Signer | None) -> None:
    """Who forgets the key takes nothing back that was signed."""
    current = _read_current(store, name)
    if signer is not None or current is None:
        return
    try:
        is_key_needed = bool(parse_statement(current.data, name).key)
    except Corrupt:
        return
    if is_key_needed:
        raise Invalid(f"release {name} is signed, and this would not be", hint="--key FILE, or another name for it")


def _statement(
    dataset: Dataset, name: str, seq: int, digest: str, signer: Signer | None, bootstrap: bytes, host: Host
) -> Statement:
    """The statement of a seq, and before it all that it speaks of, in the store."""
    store = dataset.store
    bootstrap_sha256 = hashlib.sha256(bootstrap).hexdigest() if bootstrap else ""
    known = _known(store, name, seq)
    key = "" if signer is None else signer.public
    if known is not None and (known.digest, known.key, known.bootstrap_sha256) == (digest, key, bootstrap_sha256):
        boot = next(iter(store.list(names.boot_key(name, seq))), None)
        if boot is not None and boot.size == known.boot_bytes and (signer is None or has_signature(known)):
            return known
    with tempfile.TemporaryDirectory(prefix="boxlink-release-") as scratch:
        path = Path(scratch) / "boot.tar.gz"
        view = open_view(dataset, seq)
        try:
            sha256, size = write_boot_tar(view, path)
        finally:
            view.close()
        store.put(names.boot_key(name, seq), path)
    if bootstrap:
        store.put(names.bootstrap_key(name), bootstrap)
    at = datetime.fromtimestamp(host.clock.wall_ns() / 1e9, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    statement = Statement(
        release=name,
        seq=seq,
        digest=digest,
        boot_sha256=sha256,
        boot_bytes=size,
        bootstrap_sha256=bootstrap_sha256,
        at=at,
    )
    if signer is not None:
        signature = signer.sign(statement.signed_bytes())
        statement = statement.model_copy(update={"key": signer.public, "signature": signature})
    store.put(names.statement_key(name, seq), _encode(statement))
    return statement


def _known(store: Store, name: str, seq: int) -> Statement | None:
    """What was said of a seq before; None where nothing was, or nothing that can be read."""
    try:
        return read_statement(store, name, seq)
    except (Missing, Corrupt):
        return None


def _encode(statement: Statement) -> bytes:
    return statement.model_dump_json().encode()


def _move_current(store: Store, statement: Statement) -> bool:
    """Let ``current`` be this statement, unless it is of a newer seq."""
    key = names.current_key(statement.release)
    data = _encode(statement)
    for _ in range(_TRIES):
        old = _read_current(store, statement.release)
        if old is not None and old.data == data:
            return True
        if old is not None and _seq_of(old, statement.release) > statement.seq:
            return False
        try:
            store.put(key, data, if_absent=old is None, if_match=None if old is None else old.etag)
            return True
        except (Conflict, Ambiguous):
            # Another was there first, or it is our own: the next look tells.
            continue
    raise Conflict(f"release {statement.release} is being published by others too", hint="run it again", key=key)


def _seq_of(current: Fetched, name: str) -> int:
    """0 where it cannot be read: then it is put right."""
    try:
        return parse_statement(current.data, name).seq
    except Corrupt:
        return 0


def _read_current(store: Store, name: str) -> Fetched | None:
    try:
        return store.get(names.current_key(name), size_max=_CURRENT_BYTES_MAX)
    except Missing:
        return None


def read_statement(store: Store, name: str, seq: int | None) -> Statement:
    """What is said of a seq, or of the current one (None). Its signature is not looked at."""
    key = names.current_key(name) if seq is None else names.statement_key(name, seq)
    try:
        fetched = store.get(key, size_max=STATEMENT_BYTES_MAX)
        assert fetched is not None
        statement = parse_statement(fetched.data, name)
        if seq is not None and statement.seq != seq:
            raise Corrupt(f"the statement of seq {seq} is of seq {statement.seq}")
    except Missing as error:
        what = f"release {name}" if seq is None else f"seq {seq} of release {name}"
        hint = f"boxlink release publish {name} DIR" if seq is None else f"boxlink release ls {name} lists them"
        raise Missing(f"there is no {what}", hint=hint, key=key) from error
    except BoxlinkError as error:
        error.key = error.key or key
        raise
    return statement


def release_command(verb: str, place: Path, seq: int | None = None) -> str:
    """A command line of ``boxlink release`` that is about a seq of the release which stands at ``place`` (DIR/NAME)."""
    words = ["boxlink", "release", verb, place.name, *([] if seq is None else ["--seq", str(seq)])]
    return shlex.join([*words, "--into", str(place.parent)])


def statements(store: Store, name: str) -> list[int]:
    """The seqs of a release that have a statement, oldest first."""
    prefix = names.statement_prefix(name)
    found = (info.key.removeprefix(prefix) for info in store.list(prefix))
    return [int(text) for text in found if len(text) == 20 and text.isascii() and text.isdigit()]


def has_signature(statement: Statement) -> bool:
    """Whether it is signed by the key that it names."""
    return is_signed(statement.signed_bytes(), statement.key, statement.signature)


def check_trusted(statement: Statement, trusted: Collection[str], *, is_unsigned_allowed: bool) -> None:
    """Refuse what nobody who is trusted has signed. ``trusted``: public keys, hex. Corrupt for a wrong signature,
    Invalid for none, or another's."""
    what = f"release {statement.release} seq {statement.seq}"
    if not statement.key and not statement.signature:
        if not is_unsigned_allowed:
            raise Invalid(f"{what} is not signed", hint="publish it with --key, or --allow-unsigned if you must")
    elif not has_signature(statement):
        raise Corrupt(f"{what}: the signature is wrong", hint="publish it again; see who may write to the store")
    elif statement.key not in trusted:
        raise Invalid(
            f"{what} is signed by {statement.key}, which is not trusted",
            hint="--trust FILE, or put the public key into /etc/boxlink/trusted",
        )
