"""What is wrong in ``boxlink.toml``, in words of its own: the key, what is there, what belongs there."""

from __future__ import annotations

from pydantic import ValidationError

from synclib.config import Settings
from synclib.core.model_errors import words_of
from synclib.errors import Invalid


def settings_error(path: str, error: ValueError | OSError | RecursionError) -> Invalid:
    other = f"correct {path}, or set BOXLINK_CONFIG to another file"
    if isinstance(error, ValidationError):
        return Invalid(words_of(error, Settings), hint=other, path=path)
    if isinstance(error, OSError):
        return Invalid(f"it cannot be read: {error.strerror}", hint="set BOXLINK_CONFIG to another file", path=path)
    if isinstance(error, RecursionError):
        return Invalid("it is nested too deeply", hint=f"correct {path}", path=path)
    return Invalid(f"it is no TOML: {error}", hint=other, path=path)
