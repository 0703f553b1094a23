"""What is signed of a release: the same text, made and checked without any library (synclib/core/release.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .failure import Failure

BYTES_MAX = 16 << 10
BOOT_BYTES_MAX = 16 << 30
_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX128 = re.compile(r"[0-9a-f]{128}")
_FIELDS = {
    "v": int, "release": str, "seq": int, "digest": str, "boot_sha256": str, "boot_bytes": int,
    "bootstrap_sha256": str, "at": str, "key": str, "signature": str,
}  # fmt: skip
_KEY_FILES_MAX = 64


@dataclass(frozen=True)
class Statement:
    release: str
    seq: int
    digest: str
    boot_sha256: str
    boot_bytes: int
    bootstrap_sha256: str
    at: str
    key: str
    signature: str

    def signed_bytes(self) -> bytes:
        return (
            f"boxlink-release=1\nrelease={self.release}\nseq={self.seq}\ndigest={self.digest}\n"
            f"boot_sha256={self.boot_sha256}\nboot_bytes={self.boot_bytes}\n"
            f"bootstrap_sha256={self.bootstrap_sha256}\nat={self.at}\n"
        ).encode()


def parse_statement(data: bytes, release: str, seq: int | None) -> Statement:
    """A statement of that release, and of that seq where one is asked for. Failure for anything else."""
    what = f"the statement of release {release}"
    try:
        found = json.loads(data) if len(data) <= BYTES_MAX else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or set(found) != set(_FIELDS):
        raise Failure(f"{what} is none")
    for name, kind in _FIELDS.items():
        if type(found[name]) is not kind:
            raise Failure(f"{what} has a wrong {name}")
    is_right = {
        "v": found["v"] == 1,
        "release": found["release"] == release,
        "seq": 1 <= found["seq"] < 1 << 63 and seq in (None, found["seq"]),
        "digest": _HEX64.fullmatch(found["digest"]),
        "boot_sha256": _HEX64.fullmatch(found["boot_sha256"]),
        "boot_bytes": 1 <= found["boot_bytes"] <= BOOT_BYTES_MAX,
        "bootstrap_sha256": not found["bootstrap_sha256"] or _HEX64.fullmatch(found["bootstrap_sha256"]),
        "at": len(found["at"]) <= 64 and found["at"].isprintable(),
        "key": not found["key"] or _HEX64.fullmatch(found["key"]),
        "signature": not found["signature"] or _HEX128.fullmatch(found["signature"]),
    }
    for name, right in is_right.items():
        if not right:
            raise Failure(f"{what} has a wrong {name}")
    del found["v"]
    return Statement(**found)


def check(statement: Statement, trusted: Collection[str], pin: str) -> bool:
    """Refuse a release that is neither pinned nor signed by a trusted key; whether it is signed so. ``pin``: the
    SHA-256 that its boot tar must have, empty for none."""
    what = f"release {statement.release} seq {statement.seq}"
    is_trusted = bool(statement.key) and statement.key in trusted
    if is_trusted:
        from .ed25519 import is_signed

        if not is_signed(statement.signed_bytes(), bytes.fromhex(statement.key), bytes.fromhex(statement.signature)):
            raise Failure(f"{what}: the signature is wrong", "see who may write to the store")
    if pin and statement.boot_sha256 != pin:
        raise Failure(f"{what} is not the one that user-data pins", "its sha256 is another's: name NAME@SEQ with it")
    if not pin and not is_trusted:
        who = f"signed by {statement.key}, which is not trusted here" if statement.key else "not signed"
        raise Failure(f"{what} is {who}", "put the public key into /etc/boxlink/trusted, or sha256 into the user-data")
    return is_trusted


def trusted_keys(directory: Path) -> set[str]:
    """The public keys of ``*.pub`` files: in each one line of 64 hex digits, and comments."""
    keys = set()
    for path in sorted(directory.glob("*.pub"))[:_KEY_FILES_MAX]:
        try:
            with path.open("rb") as file:
                text = file.read(4096).decode(errors="replace")
        except OSError as error:
            raise Failure(f"{path} cannot be read: {error.strerror}") from error
        lines = [line.strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if len(found) != 1 or not _HEX64.fullmatch(found[0]):
            raise Failure(f"{path} is no public key", "it is one line of 64 hex digits")
        keys.add(found[0])
    return keys
