"""Hints for what is not there: what is, that is most like it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from synclib.lazy.near import Near
from tools.cli_engine import printable

_LIKE_MAX, _LISTED_MAX = 3, 5
_NAME_CHARACTERS_MAX = 100


def path_hint(dataset: str, near: Near) -> str:
    """For a path that a dataset does not have."""
    place = printable(near.directory)
    if not near.is_directory:
        return f"{place} is no directory"
    where = f"boxlink ls {dataset} {place}".rstrip()
    inner = near.directory + b"/" if near.directory else b""
    like = _like(os.fsdecode(near.lacking), [os.fsdecode(name) for name in near.names])
    if like:
        return (
            f"did you mean {_or([printable(inner + os.fsencode(name)) for name in like])}? {where} lists what is there"
        )
    if not near.names:
        return f"{place or dataset} is empty"
    return f"{place or dataset} has {_some([printable(name) for name in near.names])}: {where}"


def dataset_hint(wanted: str, names: Sequence[str]) -> str:
    """For a dataset that a store does not have; empty where it has none."""
    like = _like(wanted, names)
    if like:
        return f"did you mean {_or(like)}? boxlink ls lists the datasets"
    return f"there are {_some(names)}: boxlink ls" if names else ""


def _like(wanted: str, names: Sequence[str]) -> list[str]:
    """Those that differ in case alone, or in little, the best first."""
    by_folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(wanted.casefold(), by_folded, _LIKE_MAX)
    return [by_folded[name] for name in found]


def _or(names: Sequence[str]) -> str:
    return " or ".join(_cut(name) for name in names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(_cut(name) for name in names[:_LISTED_MAX]) + (", …" if len(names) > _LISTED_MAX else "")


def _cut(name: str) -> str:
    """Both ends of a long one."""
    half = _NAME_CHARACTERS_MAX // 2
    return name if len(name) <= _NAME_CHARACTERS_MAX else f"{name[:half]}…{name[-half:]}"
