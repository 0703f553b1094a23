"""Where the files of a mounted dataset lie, for who wants to pin them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from synclib.core.entry import Kind, address_units
from synclib.engine.host import Connect
from synclib.lazy.dataset import Dataset, check_prefix
from synclib.lazy.open import open_view
from tools.mount_spec import MountSpec


def pinned_ranges(spec: MountSpec, paths: Sequence[str]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """(path, ranges [first, stop) of units that its files take) for each path of the seq that is mounted. Missing where
    there is none."""
    store, _ = Connect(spec.store, tuple(spec.s3.items())).opened
    dataset = Dataset(store, spec.prepared.root)
    view = open_view(dataset, spec.prepared.seq)
    try:
        for path in paths:
            prefix = check_prefix(path)
            entry = view.stat(prefix) if prefix else None
            files = view.walk(prefix) if entry is None or entry.kind == Kind.DIRECTORY else iter([entry])
            ranges: list[tuple[int, int]] = []
            for first, stop in sorted((file.address, file.address + address_units(file.size)) for file in files):
                if ranges and first == ranges[-1][1]:
                    ranges[-1] = (ranges[-1][0], stop)
                elif first and stop > first:
                    ranges.append((first, stop))
            yield os.fsdecode(prefix), ranges
    finally:
        view.close()
