"""The kind of machine that a node of a cloud runs on, as it is asked for."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Name = Annotated[str, Field(min_length=1, max_length=256)]
Names = Annotated[tuple[Name, ...], Field(max_length=100)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Machine:
    """``types`` and ``subnets`` in order of preference: the next is tried where one is full."""

    image: Name
    types: Names
    subnets: Names = ()
    security_groups: Names = ()
    profile: Annotated[str, Field(max_length=256)] = ""
