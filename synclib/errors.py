"""The error tree: kinds are what the caller should do, each with its exit code.

Foreign exceptions stop at the adapter that met them; above it only these are seen. A bug stays a plain
exception (exit code 70).
"""

from __future__ import annotations

from typing import ClassVar


class BoxlinkError(Exception):
    """Base of all errors that are about the world rather than about our own logic.

    ``hint`` says what an operator can do next. ``dataset``, ``key`` and ``path`` name what it concerns.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 70
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", dataset: str = "", key: str = "", path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.dataset = dataset
        self.key = key
        self.path = path

    def as_dict(self) -> dict[str, str]:
        """The fields of ``{"error": …}`` as ``--json`` and ``synch.error`` show them; empty ones left out."""
        shown = {"kind": self.kind, "message": self.message, "hint": self.hint}
        for name in ("dataset", "key", "path"):
            if value := getattr(self, name):
                shown[name] = value
        return shown


class Invalid(BoxlinkError):
    """The input, a setting or a credential is wrong: fix it."""

    kind = "invalid"
    exit_code = 2


class Partial(BoxlinkError):
    """Done, but for the paths it names."""

    kind = "partial"
    exit_code = 3


class Missing(BoxlinkError):
    """It is not there: a store that was never initialised, a dataset, a seq, a path, an object."""

    kind = "missing"
    exit_code = 10


class Unavailable(BoxlinkError):
    """It did not answer, or not in time: try again."""

    kind = "unavailable"
    exit_code = 11
    is_retryable = True


class Ambiguous(Unavailable):
    """A conditional write whose answer was lost: it may have been applied. Read back and decide.

    Never retried blindly: one's own first try would look like a conflict.
    """


class Fenced(BoxlinkError):
    """Someone newer owns it."""

    kind = "fenced"
    exit_code = 12


class Conflict(BoxlinkError):
    """A conditional write lost: re-read, decide again."""

    kind = "conflict"
    exit_code = 13


class Corrupt(BoxlinkError):
    """Bytes are not what their digest, length or format says."""

    kind = "corrupt"
    exit_code = 20


class Unsupported(BoxlinkError):
    """Well formed, but newer than this program, or beyond what the target can hold."""

    kind = "unsupported"
    exit_code = 21


class Full(BoxlinkError):
    """No space (or quota) left."""

    kind = "full"
    exit_code = 22


class Interrupted(BoxlinkError):
    """Stopped by the user or by a signal; nothing is broken, a further run continues."""

    kind = "interrupted"
    exit_code = 130
