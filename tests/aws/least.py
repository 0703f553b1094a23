"""Whether a policy gives anything that nobody needs: each action, resource and listed value is taken out of it in turn,
and something that was really asked must then be refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.aws.iam import Access, load_policy


class Noted:
    """The rights that were needed for what was asked and allowed, by who asked. Any thread may add."""

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[str, str, tuple[tuple[str, str], ...]], Access]] = {}
        self._lock = threading.Lock()

    def add(self, who: str, accesses: Iterable[Access]) -> None:
        with self._lock:
            known = self._found.setdefault(who, {})
            for access in accesses:
                known[access.action, access.resource, tuple(sorted(access.context.items()))] = access

    def of(self, who: str) -> list[Access]:
        with self._lock:
            return list(self._found.get(who, {}).values())


def unneeded(document: Mapping[str, Any], asked: Iterable[Access], *, of_s3: bool) -> list[str]:
    """What can be taken out of a policy so that all that was ``asked`` is allowed as before. ``of_s3``: of its rights
    on the store, else of all others."""
    asked = list(asked)
    return [
        name
        for name, less in _lessened(document)
        if name.partition(" ")[2].startswith("s3:") == of_s3 and load_policy(less).refused(asked) is None
    ]


def _lessened(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``Sid actions what``, the policy without it)."""
    for number, statement in enumerate(document["Statement"]):
        actions = _several(statement["Action"])
        for action in actions:
            yield f"{statement['Sid']} {action}", _without(document, number, ["Action"], action)
        for resource in _several(statement["Resource"]):
            yield f"{statement['Sid']} {actions[0]} {resource}", _without(document, number, ["Resource"], resource)
        for operator, keys in statement.get("Condition", {}).items():
            for key, values in keys.items():
                for value in _several(values):
                    path = ["Condition", operator, key]
                    yield f"{statement['Sid']} {actions[0]} {key} {value}", _without(document, number, path, value)


def _without(document: Mapping[str, Any], number: int, path: list[str], value: str) -> dict[str, Any]:
    """With one value less; a statement that has none left allows nothing."""
    found: dict[str, Any] = copy.deepcopy(dict(document))
    place = found["Statement"][number]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = [each for each in _several(place[path[-1]]) if each != value]
    return found


def _several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
