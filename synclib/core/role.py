"""A role: which processes a node runs. A small TOML file that a person can read and write.

    role = "render"
    release_channel = "stable"      # follow the releases that this channel names; left out: stay at the one that runs

    [values]                        # what {…} below stands for; --set NAME=VALUE takes the place of one
    listen = "0.0.0.0:8000"

    [[process]]
    name = "sync"
    run = ["boxlink", "sync", "--data", "{data}"]

    [[process]]
    name = "render"
    run = ["boxlink", "render", "--data", "{data}", "--listen", "{listen}"]
    stop_s = 60                     # 45, where it is left out

They are started in this order and stopped in the other. ``{data}``, ``{node}``, ``{role}`` and ``{release}`` (the
directory of the release that runs) always stand for something.
"""

from __future__ import annotations

import re
import tomllib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from synclib.core.drain import STOP_S
from synclib.core.model_errors import words_of
from synclib.errors import Invalid

ROLE_BYTES_MAX = 64 << 10
BUILT_IN_VALUES = ("data", "node", "role", "release")
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
_VALUE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class Process(BaseModel):
    """One process. ``stop_s``: how long it may take to end after SIGTERM, before it is killed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    run: list[Word] = Field(min_length=1, max_length=256)
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Word] = {}
    stop_s: float = Field(default=STOP_S, gt=0, le=600)


class Role(BaseModel):
    """``release_channel``: which channel's releases its nodes follow; empty for none. ``release_spread_s``: they change
    at a random moment within it, so that not all drain at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Name
    release_channel: Name | Literal[""] = ""
    release_spread_s: float = Field(default=300, ge=0, le=86400)
    values: dict[str, str] = {}
    process: list[Process] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _check(self) -> Role:
        found = [process.name for process in self.process]
        if len(set(found)) != len(found):
            raise ValueError("two processes have one name")
        return self

    def with_values(self, values: dict[str, str]) -> list[Process]:
        """Its processes with every ``{name}`` in ``run`` and ``environment`` replaced. Invalid for a name that stands
        for nothing."""
        known = {**self.values, **values}

        def replaced(text: str) -> str:
            try:
                return _VALUE.sub(lambda match: known[match[1]], text)
            except KeyError as error:
                name = error.args[0]
                raise Invalid(
                    f"role {self.role}: {{{name}}} stands for nothing", hint=f"--set {name}=…, or under [values]"
                ) from None

        return [
            process.model_copy(
                update={
                    "run": [replaced(word) for word in process.run],
                    "environment": {name: replaced(value) for name, value in process.environment.items()},
                }
            )
            for process in self.process
        ]


def parse_role(data: bytes, where: str) -> Role:
    """``where``: what an error names."""
    if len(data) > ROLE_BYTES_MAX:
        raise Invalid(f"a role of {len(data)} bytes is too large", path=where)
    try:
        return Role.model_validate(tomllib.loads(data.decode()))
    except RecursionError as error:
        raise Invalid("it is nested too deeply", path=where) from error
    except ValidationError as error:
        raise Invalid(words_of(error, Role), path=where) from error
    except ValueError as error:  # also of a number with thousands of digits
        raise Invalid(f"this is no TOML: {error}", path=where) from error
