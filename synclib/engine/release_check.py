"""Whether a release's directory holds exactly what its statement names, to the last byte.

The signature covers the digest of the tree; that is counted over the entries of the chain kept beside the files, and
each file is read and compared with its entry. So nothing but the statement need be believed, and no store be asked.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blake3 import blake3

from synclib.core.entry import Entry, Kind
from synclib.core.names import STATE_DIRECTORY, release_root, sort_key
from synclib.core.parents import with_parents
from synclib.core.release import Statement
from synclib.core.treehash import TreeHash
from synclib.disk.held import Held
from synclib.engine.release import VENV, release_command
from synclib.errors import Corrupt, Missing
from synclib.lazy.chain import Chain
from synclib.lazy.run_cache import RunCache
from synclib.store.memory import MemoryStore


def check_standing(directory: Path, statement: Statement) -> None:
    """Corrupt names the first path that is not as it was signed; Missing where nothing tells how it should be."""
    held = Held(directory)
    state = held.read()
    root = release_root(statement.release)
    if state is None or state.root != root or state.seq != statement.seq:
        raise Missing(
            f"nothing tells what release {statement.release} seq {statement.seq} should be here",
            hint=_hint(directory, statement),
            path=str(directory),
        )
    # What is not here is damage, not something to fetch.
    chain = Chain.of(RunCache(held.runs, MemoryStore("nothing")), root, state.runs)
    tree = TreeHash()
    top = os.fsencode(directory)
    for entry in with_parents(chain.entries()):
        tree.add(entry)
        if entry.directory == b"" and entry.name == VENV.encode():
            raise Corrupt(f"a release brings no {VENV}", path=str(directory))
        if not _stands(os.path.join(top, entry.path), entry):
            raise _damaged(directory, entry.path, statement)
    if tree.hexdigest() != statement.digest:
        raise Corrupt(
            f"release {statement.release} seq {statement.seq} is not what was signed",
            hint=_hint(directory, statement),
            path=str(directory),
        )
    _check_no_more(directory, chain, statement)


def _damaged(directory: Path, path: bytes, statement: Statement) -> Corrupt:
    return Corrupt(
        "it is not as it was signed",
        hint=_hint(directory, statement),
        path=os.fsdecode(os.path.join(os.fsencode(directory), path)),
    )


def _hint(directory: Path, statement: Statement) -> str:
    command = release_command("fetch", directory.parent, statement.seq)
    return f"{command} brings it anew, once this directory is moved away"


def _stands(path: bytes, entry: Entry) -> bool:
    try:
        status = os.lstat(path)
        if entry.kind == Kind.SYMLINK:
            return stat.S_ISLNK(status.st_mode) and os.readlink(path) == entry.target
        if stat.S_IMODE(status.st_mode) != entry.mode:
            return False
        if entry.kind == Kind.DIRECTORY:
            return stat.S_ISDIR(status.st_mode)
        return stat.S_ISREG(status.st_mode) and status.st_size == entry.size and _has_bytes(path, entry)
    except OSError:
        return False


def _has_bytes(path: bytes, entry: Entry) -> bool:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        return all(
            blake3(file.read(chunk.plain_bytes)).digest() == chunk.hash for chunk in entry.chunks
        ) and not file.read(1)


def _check_no_more(place: Path, chain: Chain, statement: Statement) -> None:
    """Also a file too many may be run."""
    top = os.fsencode(place)
    ours = {STATE_DIRECTORY.encode(), VENV.encode()}
    for parent, folders, files in os.walk(top):
        directory = os.path.relpath(parent, top) if parent != top else b""
        if not directory:
            folders[:] = [name for name in folders if name not in ours]
        for name in (*folders, *files):
            if chain.lookup(sort_key(directory, name)) is None:
                raise _damaged(place, os.path.join(directory, name), statement)
