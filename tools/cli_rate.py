"""``--rate BYTES``: how fast bytes are fetched that nobody waits for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class BytesType(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 5000000, 5M, 1.5G (powers of ten)."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kMG]?)B?", str(value))
        if found is None:
            self.fail(f"{value!r} is no number of bytes: write 5000000, 5M or 1.5G", param, ctx)
        return int(float(found[1]) * _UNITS[found[2]])


def rate_option(function: F) -> F:
    """``--rate BYTES``, 0 where it is not given."""
    return click.option(
        "--rate",
        type=BytesType(),
        default=0,
        metavar="BYTES",
        help="Background fetching: at most so many a second.",
    )(function)
