"""What a first boot cannot go on from."""

from __future__ import annotations


class Failure(Exception):
    """``hint`` says what an operator can do next. Neither holds a secret: both go into the log."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Temporary(Failure):
    """It did not answer, or not now: worth another try."""


class NotThere(Failure):
    """The store, or the metadata service, says that there is no such thing."""


class AlreadyThere(Failure):
    """What was to be made is there."""
