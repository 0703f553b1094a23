"""The text of the markers: local files that programs which know nothing of boxlink read and write."""

from __future__ import annotations

import re
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synclib.errors import BoxlinkError, Corrupt, Invalid

# eager: its files are restored; lazy: it is mounted; reader: nothing is here but what programs that use our own reader
# (boxlink render) fetch when they need it.
Mode = Literal["eager", "lazy", "reader"]
MARKER_BYTES_MAX = 64 << 10
_DIGITS_MAX = 18  # of a seq: int() refuses very long ones in its own way
_WORDS = "words may be: lazy, eager, reader, seq=N, from=snapshot, from=snap-…"
_SNAPSHOT = re.compile(r"snap-[0-9a-z]{1,64}")


class Active(BaseModel):
    """What ``synch.active`` asks for: empty text is all defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode | None = None
    seq: int | None = Field(default=None, ge=1)
    source: Literal["store", "snapshot"] = "store"
    snapshot: str = ""  # the one that the volume shall be of; empty: the newest that fits, and then no other


class Down(BaseModel):
    """What ``synch.down`` answers: the seq that stands here, whole and verified."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    seq: int = Field(ge=0)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    mode: Mode | Literal["publish"] = "eager"
    reason: str = ""  # why this mode, or that following has stopped
    at: str  # RFC 3339, UTC


class Error(BaseModel):
    """What ``synch.error`` says: why a request is not fulfilled."""

    dataset: str
    kind: str
    message: str
    hint: str
    at: str


def parse_active(text: str) -> Active:
    """``lazy``, ``eager``, ``reader``, ``seq=N``, ``from=snapshot``, ``from=snap-…``, in any order, with white space
    between."""
    fields: dict[str, object] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if word in get_args(Mode):
            fields["mode"] = word
        elif name == "seq" and equals and value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX:
            fields["seq"] = int(value)
        elif name == "from" and value in ("snapshot", "store"):
            fields["source"] = value
        elif name == "from" and _SNAPSHOT.fullmatch(value):
            fields |= {"source": "snapshot", "snapshot": value}
        else:
            raise Invalid(f"synch.active holds {word[:80]!r}", hint=_WORDS)
    try:
        return Active.model_validate(fields)
    except ValidationError as error:
        raise Invalid(f"synch.active: {error.errors()[0]['msg']}", hint="seq=N needs N of 1 or more") from error


def parse_down(text: str | bytes) -> Down:
    try:
        return Down.model_validate_json(text)
    except ValidationError as error:
        raise Corrupt(f"synch.down does not parse: {error.errors()[0]['msg']}") from error


def error_marker(dataset: str, error: BoxlinkError, at: str) -> Error:
    """The marker of an error. Names that are no UTF-8 are shown with escapes: JSON has no other way."""
    dataset, message, hint = (
        text.encode("utf-8", "backslashreplace").decode() for text in (dataset, error.message, error.hint)
    )
    return Error(dataset=dataset, kind=error.kind, message=message, hint=hint, at=at)
