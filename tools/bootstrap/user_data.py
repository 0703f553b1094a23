"""What an instance is told at its start: a small TOML text.

store = "s3://bucket/prefix"
role = "render"
release = "fleet"            # or "fleet@12"; for the first boot
sha256 = "…"                 # of that release's boot tar; not needed where its signature is trusted
node = "render-1"            # its name; else that of the host
run = ["boxlink", "up", …]   # instead of `boxlink up ROLE`; {data} and {release} stand for directories
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from .failure import Failure

BYTES_MAX = 16 << 10
WORDS_MAX, WORD_CHARACTERS_MAX = 256, 4096
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ROLE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SEQ = re.compile(r"[1-9][0-9]{0,17}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = ("store", "role", "release", "sha256", "node", "run")


@dataclass(frozen=True)
class UserData:
    """``seq``: None for the release's current one. ``sha256``, ``node``: empty for none."""

    store: str
    role: str
    release: str
    seq: int | None
    sha256: str
    node: str
    run: tuple[str, ...]


def parse_user_data(data: bytes) -> UserData:
    """Failure names the first thing that is not as it must be, never its value: people put secrets there."""
    if len(data) > BYTES_MAX:
        raise Failure(f"the user-data has more than {BYTES_MAX} bytes", "it holds a few lines of TOML")
    try:
        found = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        where = re.search(r"\(at [^)]*\)", str(error))
        raise Failure(f"the user-data is no TOML {where[0] if where else ''}".rstrip()) from None
    for key in found:
        if key not in _KEYS:
            raise Failure(f"the user-data has an unknown key {key[:64]!r}", f"it may have {', '.join(_KEYS)}")
    release, at, seq = _text(found, "release").partition("@")
    if not _is_name(release) or (at and not _SEQ.fullmatch(seq)):
        raise Failure("the user-data's release is none", 'write release = "NAME" or "NAME@SEQ"')
    role = _text(found, "role")
    if not _ROLE.fullmatch(role):
        raise Failure("the user-data's role is none", "small letters, digits and '-'")
    sha256 = _text(found, "sha256") if "sha256" in found else ""
    if sha256 and not _SHA256.fullmatch(sha256):
        raise Failure("the user-data's sha256 is none", "64 hex digits")
    node = _text(found, "node") if "node" in found else ""
    if node and (not _NAME.fullmatch(node) or ".." in node):
        raise Failure("the user-data's node is no name", "letters, digits, '-', '_' and '.'")
    store = _text(found, "store")
    if not store.startswith(("s3://", "file:///")) or not store.isprintable():
        raise Failure("the user-data's store is none", "s3://BUCKET/PREFIX or file:///DIR")
    return UserData(store, role, release, int(seq) if at else None, sha256, node, _run(found))


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text)) and ".." not in text and not text.startswith("synch.") and text != "log"


def _text(found: dict[str, object], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value:
        raise Failure(f"the user-data's {key} is no text" if key in found else f"the user-data has no {key}")
    return value


def _run(found: dict[str, object]) -> tuple[str, ...]:
    if "run" not in found:
        return ()
    words = found["run"]
    if not isinstance(words, list) or not 1 <= len(words) <= WORDS_MAX:
        raise Failure("the user-data's run is no list of words", 'run = ["boxlink", "up", "render"]')
    for word in words:
        if not isinstance(word, str) or len(word) > WORD_CHARACTERS_MAX or "\0" in word:
            raise Failure("the user-data's run has what is no word")
    if not words[0]:
        raise Failure("the user-data's run names no program")
    return tuple(words)
