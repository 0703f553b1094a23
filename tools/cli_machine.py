"""What the verbs that start instances share: which machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from synclib.errors import Invalid

if TYPE_CHECKING:
    from tools.fleet.instance_request import Machine

F = TypeVar("F", bound=Callable[..., Any])


def machine_options(function: F) -> F:
    """``--image``, ``--type``, ``--subnet``, ``--security-group``, ``--profile``."""
    for option in (
        click.option("--image", metavar="AMI", help="EC2: a machine image whose first boot runs the bootstrap."),
        click.option("--type", "types", multiple=True, metavar="TYPE", help="EC2: by preference. Repeatable."),
        click.option("--subnet", "subnets", multiple=True, metavar="ID", help="EC2: by preference. Repeatable."),
        click.option("--security-group", "groups", multiple=True, metavar="ID", help="EC2. Repeatable."),
        click.option("--profile", default="", metavar="NAME", help="EC2: the instance profile."),
    )[::-1]:
        function = option(function)
    return function


def machine_of(
    image: str | None, types: tuple[str, ...], subnets: tuple[str, ...], groups: tuple[str, ...], profile: str
) -> Machine:
    """What these options say."""
    from tools.fleet.instance_request import Machine

    for name, given in (("--image", image), ("--type", types)):
        if not given:
            raise Invalid(f"{name} is needed for EC2", hint="or do it on this machine: --local DIR")
    assert image is not None
    return Machine(image, types, subnets, groups, profile)


def machine_words(
    image: str | None, types: tuple[str, ...], subnets: tuple[str, ...], groups: tuple[str, ...], profile: str
) -> list[str]:
    """These options as they stand on a command line."""
    given = (
        ("--image", () if image is None else (image,)),
        ("--type", types),
        ("--subnet", subnets),
        ("--security-group", groups),
        ("--profile", (profile,) if profile else ()),
    )
    return [word for name, values in given for value in values for word in (name, value)]
