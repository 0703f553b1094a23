"""What is wrong in a file that a person wrote, in words of its own: the key, what is there, what belongs there."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "string_type": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "list_type": "a list in brackets",
    "model": "a table",
    "dict": "a table",
}
_GIVEN_MAX = 80
_BOUNDS = {
    "greater_than": "more than",
    "less_than": "less than",
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
}


def words_of(error: ValidationError, model: type[BaseModel]) -> str:
    """All that ``error`` says of a file that was to be ``model``."""
    return "; ".join(_what(found, model) for found in error.errors(include_url=False))


def _what(found: ErrorDetails, model: type[BaseModel]) -> str:
    place, kind, limits = found["loc"], found["type"], found.get("ctx", {})
    key = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return f"there is no {key}; {_table(place[:-1])} has {', '.join(_known(place[:-1], model))}"
    if kind == "missing":
        return f"{key} is missing"
    if not key:
        return found["msg"].removeprefix("Value error, ")
    given = f"{key} is {_given(place, found['input'])}"
    if kind in _BOUNDS:
        return f"{given}, it has to be {_BOUNDS[kind]} {next(iter(limits.values()))}"
    if kind == "string_pattern_mismatch":
        return f"{given}, it has to be of the form {limits['pattern']}"
    expected = next((text for word, text in _EXPECTED.items() if kind.startswith(word)), "")
    return f"{given}, it has to be {expected}" if expected else f"{given}: {found['msg']}"


def _given(place: tuple[int | str, ...], value: object) -> str:
    """What is there, in short: all of a table, and what an environment holds, may be nobody else's to see."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if "environment" in place[:-1]:
        return "another thing"
    text = repr(value)
    return text if len(text) <= _GIVEN_MAX else f"{text[:_GIVEN_MAX]}…"


def _table(place: tuple[int | str, ...]) -> str:
    """As it stands in a TOML file; of several of one name, which."""
    names = [part for part in place if isinstance(part, str)]
    if not names:
        return "the file"
    return f"[{'.'.join(names)}]" if len(names) == len(place) else f"each [[{'.'.join(names)}]]"


def _known(place: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    found: Any = model
    for part in place:
        found = typing.get_args(found)[0] if isinstance(part, int) else found.model_fields[part].annotation
    return list(found.model_fields)
