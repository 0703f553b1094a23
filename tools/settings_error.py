"""What is wrong in ``boxlink.toml``, in words of its own: the key, what is there, what belongs there."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from synclib.config import Settings
from synclib.errors import Invalid

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "string": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "list": "a list in brackets",
    "model": "a table",
}


def settings_error(path: str, error: tomllib.TOMLDecodeError | ValidationError | OSError | RecursionError) -> Invalid:
    if isinstance(error, ValidationError):
        wrong = "; ".join(_what(found) for found in error.errors(include_url=False))
        return Invalid(wrong, hint=f"correct {path}, or set BOXLINK_CONFIG to another file", path=path)
    if isinstance(error, OSError):
        return Invalid(f"it cannot be read: {error.strerror}", hint="set BOXLINK_CONFIG to another file", path=path)
    if isinstance(error, RecursionError):
        return Invalid("it is nested too deeply", hint=f"correct {path}", path=path)
    return Invalid(f"it is no TOML: {error}", hint=f"correct {path}, or set BOXLINK_CONFIG to another file", path=path)


def _what(found: ErrorDetails) -> str:
    key = ".".join(str(part) for part in found["loc"])
    kind = found["type"]
    limits = found.get("ctx", {})
    if kind == "extra_forbidden":
        return f"there is no setting {key}; {_table(found['loc'][:-1])} has {', '.join(_known(found['loc'][:-1]))}"
    given = f"{key} is {found['input']!r}"
    if kind.startswith(("greater_than", "less_than")):
        bound = {"greater_than": "more than", "less_than": "less than"}.get(kind) or {
            "greater_than_equal": "at least",
            "less_than_equal": "at most",
        }[kind]
        return f"{given}, it has to be {bound} {next(iter(limits.values()))}"
    expected = next((text for word, text in _EXPECTED.items() if kind.startswith(word)), "")
    return f"{given}, it has to be {expected}" if expected else f"{given}: {found['msg']}"


def _table(place: tuple[int | str, ...]) -> str:
    return f"[{'.'.join(map(str, place))}]" if place else "the file"


def _known(place: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
