"""An answer that is a refusal, as either service words it."""

from __future__ import annotations


class Refused(Exception):
    """``code`` and ``message`` as the service gives them; ``reason`` is EBS direct's second code."""

    def __init__(self, code: str, message: str, *, reason: str = "", status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.status = status


def invalid(message: str, reason: str = "INVALID_PARAMETER_VALUE") -> Refused:
    """EBS direct's word for a wrong request."""
    return Refused("ValidationException", message, reason=reason)


class NoAnswer(Exception):
    """The request was carried out, and its answer is lost."""
