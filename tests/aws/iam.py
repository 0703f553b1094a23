"""Policies of IAM, as far as docs/iam/ uses them: Effect, Action, Resource, and two operators of Condition.

Whatever a policy holds that is not known here is an error when it is loaded: a condition that is passed over in
silence would make a policy look narrower than it is.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_OPERATORS = {"StringEquals", "StringLike"}
_STATEMENT = {"Sid", "Effect", "Action", "Resource", "Condition"}


@dataclass(frozen=True)
class Access:
    """One right that a request needs. ``context``: the condition keys that have a value, e.g. aws:ResourceTag/role."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Statement:
    is_allow: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...]

    def covers(self, access: Access) -> bool:
        return (
            any(_like(access.action.lower(), action.lower()) for action in self.actions)
            and any(_like(access.resource, resource) for resource in self.resources)
            and all(_holds(condition, access.context) for condition in self.conditions)
        )


@dataclass(frozen=True)
class Policy:
    statements: tuple[Statement, ...]

    def allows(self, access: Access) -> bool:
        """A statement allows it and none denies it."""
        covering = [statement for statement in self.statements if statement.covers(access)]
        return bool(covering) and all(statement.is_allow for statement in covering)

    def refused(self, accesses: Iterable[Access]) -> Access | None:
        """The first of the rights that it does not give."""
        return next((access for access in accesses if not self.allows(access)), None)


def load_policy(document: Mapping[str, Any]) -> Policy:
    """ValueError for anything that is not known here."""
    if set(document) != {"Version", "Statement"} or document["Version"] != "2012-10-17":
        raise ValueError("a policy has the Version 2012-10-17 and a Statement")
    return Policy(tuple(_statement(item) for item in document["Statement"]))


ADMINISTRATOR = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}


def _statement(item: Mapping[str, Any]) -> Statement:
    if not {"Effect", "Action", "Resource"} <= set(item) <= _STATEMENT:
        raise ValueError(f"a statement with {sorted(item)}")
    conditions = []
    for operator, keys in item.get("Condition", {}).items():
        if operator not in _OPERATORS:
            raise ValueError(f"the condition operator {operator} is not known here")
        for key, values in keys.items():
            conditions.append((operator, key, _several(values)))
    return Statement(
        {"Allow": True, "Deny": False}[item["Effect"]],
        _several(item["Action"]),
        _several(item["Resource"]),
        tuple(conditions),
    )


def _several(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _holds(condition: tuple[str, str, tuple[str, ...]], context: Mapping[str, str]) -> bool:
    operator, key, values = condition
    if key not in context:
        return False
    if operator == "StringEquals":
        return context[key] in values
    return any(_like(context[key], value) for value in values)


def _like(text: str, pattern: str) -> bool:
    """IAM's wildcards are ``*`` and ``?``; a bracket is itself."""
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text) is not None
