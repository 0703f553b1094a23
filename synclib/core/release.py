"""What is signed of a release, and the text that is.

A release is a dataset at ``release/<name>/``. Of each seq that may run there is a statement, ``release/<name>/signed/
<seq>``; ``release/<name>/current`` is a copy of the one that new nodes take. The signature is Ed25519 (RFC 8032) over
:meth:`Statement.signed_bytes`. First boots read it with the standard library alone: keep it plain.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from synclib.core.names import check_dataset
from synclib.errors import Corrupt

STATEMENT_BYTES_MAX = 16 << 10
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Statement(BaseModel):
    """``digest``: of the seq's tree. ``boot_sha256`` and ``boot_bytes``: of ``boot-<seq>.tar.gz``;
    ``bootstrap_sha256``: of ``bootstrap.pyz``, empty where the release has none. ``key`` (who signed) and ``signature``
    are hex, empty where it is unsigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    v: Literal[1] = 1
    release: str = Field(max_length=128)
    seq: int = Field(ge=1, lt=1 << 63)
    digest: Hex64
    boot_sha256: Hex64
    boot_bytes: int = Field(ge=1, lt=1 << 40)
    bootstrap_sha256: Hex64 | Literal[""] = ""
    at: str = Field(max_length=64)
    key: Hex64 | Literal[""] = ""
    signature: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{128})?$")] = ""

    def signed_bytes(self) -> bytes:
        """One ``name=value`` a line, in this order; no value can hold a line's end."""
        fields = (
            ("boxlink-release", self.v),
            ("release", self.release),
            ("seq", self.seq),
            ("digest", self.digest),
            ("boot_sha256", self.boot_sha256),
            ("boot_bytes", self.boot_bytes),
            ("bootstrap_sha256", self.bootstrap_sha256),
            ("at", self.at),
        )
        return "".join(f"{name}={value}\n" for name, value in fields).encode()


def parse_statement(data: bytes, release: str) -> Statement:
    """A statement of ``release``, well formed; whether its signature is right is not looked at."""
    if len(data) > STATEMENT_BYTES_MAX:
        raise Corrupt(f"a release's statement of {len(data)} bytes is too large")
    try:
        found = Statement.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise Corrupt(f"a release's statement: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if found.release != check_dataset(release) or "\n" in found.at:
        raise Corrupt(f"a release's statement is not of {release}")
    return found
