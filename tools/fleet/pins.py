"""Datasets that a local node has at a seq: the word is in their ``synch.active``, as a person would put it there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from synclib.core import names
from synclib.disk.atomic import write_atomic
from synclib.disk.faults import disk_errors
from synclib.disk.markers import Markers
from synclib.errors import Invalid
from synclib.lazy.dataset import Dataset
from synclib.store.base import Store


def parse_pins(words: Sequence[str]) -> dict[str, int]:
    """``DATASET=SEQ`` of a command line."""
    pins: dict[str, int] = {}
    for word in words:
        dataset, _, number = word.partition("=")
        if not (number.isascii() and number.isdigit() and 0 < len(number) < 19 and int(number)):
            raise Invalid(f"{word!r} is no DATASET=SEQ", hint="write covers=42")
        pins[names.check_dataset(dataset)] = int(number)
    return pins


def check_pins(store: Store, pins: Mapping[str, int]) -> None:
    """Missing where a dataset has no such seq: whoever waits for it would wait in vain."""
    for dataset, seq in pins.items():
        Dataset(store, names.dataset_root(dataset)).manifest_at(seq)


def write_pins(data: Path, pins: Mapping[str, int], *, is_from_snapshot: bool = False) -> None:
    """Ask, in a node's data directory, for datasets at their seqs; ``is_from_snapshot``: by way of a volume of one."""
    source = " from=snapshot" if is_from_snapshot else ""
    with disk_errors():
        for dataset, seq in pins.items():
            directory = data / names.check_dataset(dataset)
            directory.mkdir(parents=True, exist_ok=True)
            write_atomic(directory / names.ACTIVE, f"seq={seq}{source}\n".encode())


def read_pins(data: Path) -> dict[str, int]:
    """What a node's data directory asks for by seq."""
    pins: dict[str, int] = {}
    for path in sorted(data.glob(f"*/{names.ACTIVE}")):
        with contextlib.suppress(Invalid, OSError):
            active = Markers(path.parent).active()
            if active is not None and active.seq is not None:
                pins[path.parent.name] = active.seq
    return pins
