"""``--share``: for servers that another may take the place of on the same port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def share_option(function: F) -> F:
    return click.option(
        "--share",
        "is_shared",
        is_flag=True,
        help="Take the port over from a server there that shares it, and hand it on; no connection is lost.",
    )(function)
