"""Requests and answers held against botocore's own model of a service: what the model does not know is refused.

botocore checks a request's types before it sends it, but neither enums, patterns nor upper bounds; these count here.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "long": int,
    "double": (int, float),
    "float": (int, float),
    "boolean": bool,
    "blob": bytes,
}


class Mismatch(Exception):
    """A value that its shape does not allow; ``kind`` is unknown, missing or value."""

    def __init__(self, kind: str, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}")
        self.kind = kind
        self.where = where


@functools.cache
def service_model(name: str) -> ServiceModel:
    return ServiceModel(Loader().load_service_model(name, "service-2"), name)


def check(value: Any, shape: Shape, where: str = "") -> None:
    """Mismatch where a value is not of its shape."""
    if shape.type_name == "structure":
        _check_structure(value, shape, where)
    elif shape.type_name == "list":
        _check_bounds(len(value), shape, where)
        for number, item in enumerate(value, 1):
            check(item, shape.member, f"{where}.{number}")
    elif shape.type_name == "map":
        for key, item in value.items():
            check(key, shape.key, f"{where} key")
            check(item, shape.value, f"{where}.{key}")
    else:
        _check_scalar(value, shape, where)


def _check_structure(value: Any, shape: Shape, where: str) -> None:
    if not isinstance(value, dict):
        raise Mismatch("value", where, "no structure")
    for name, item in value.items():
        inside = f"{where}.{name}" if where else name
        if name not in shape.members:
            raise Mismatch("unknown", inside, "is not recognized")
        check(item, shape.members[name], inside)
    for name in shape.required_members:
        if name not in value:
            raise Mismatch("missing", f"{where}.{name}" if where else name, "is required")


def _check_scalar(value: Any, shape: Shape, where: str) -> None:
    expected = _PYTHON_TYPES.get(shape.type_name)
    is_number = shape.type_name in ("integer", "long", "double", "float")
    if expected is not None and (not isinstance(value, expected) or (is_number and isinstance(value, bool))):
        raise Mismatch("value", where, f"{value!r} is no {shape.type_name}")
    if is_number:
        _check_bounds(value, shape, where)
    if isinstance(value, str):
        _check_bounds(len(value), shape, where)
        choices, pattern = shape.metadata.get("enum"), shape.metadata.get("pattern")
        if choices and value not in choices:
            raise Mismatch("value", where, f"{value!r} is none of its values")
        if pattern and not re.search(pattern, value):
            raise Mismatch("value", where, f"{value!r} does not match {pattern}")


def _check_bounds(size: float, shape: Shape, where: str) -> None:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if (low is not None and size < low) or (high is not None and size > high):
        raise Mismatch("value", where, f"{size} is not within {low} and {high}")


def number(text: str, where: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise Mismatch("value", where, f"{text!r} is no integer")
    return int(text)


def truth(text: str, where: str) -> bool:
    if text not in ("true", "false"):
        raise Mismatch("value", where, f"{text!r} is neither true nor false")
    return text == "true"
