"""Rows of bytes put in order without holding them in memory: sorted stretches of a file, merged as they are read."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator

_SORTED_ROWS = 1 << 18  # how many are sorted at a time: some 30 MB
_READ_ROWS = 1 << 10


class SortedRows:
    """Takes rows of ``row_bytes`` each, then gives them in order."""

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this
        self._rows: list[bytes] = []
        self._stretches: list[tuple[int, int]] = []  # (offset in the file, rows)

    def __enter__(self) -> SortedRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def add(self, row: bytes) -> None:
        self._rows.append(row)
        if len(self._rows) >= _SORTED_ROWS:
            self._keep()

    def _keep(self) -> None:
        self._rows.sort()
        self._stretches.append((self._file.tell(), len(self._rows)))
        self._file.writelines(self._rows)
        self._rows = []

    def sorted(self) -> Iterator[bytes]:
        """All rows. Ends the taking of them."""
        self._keep()
        self._file.flush()
        return heapq.merge(*(self._read(*stretch) for stretch in self._stretches))

    def _read(self, offset: int, count: int) -> Iterator[bytes]:
        size = self._row_bytes
        end = offset + count * size
        while offset < end:
            self._file.seek(offset)
            data = self._file.read(min(_READ_ROWS * size, end - offset))
            offset += len(data)
            yield from (data[at : at + size] for at in range(0, len(data), size))
