"""What of a restore the store could not give: counted, the first paths named, and then one error."""

from __future__ import annotations

import os

from synclib.errors import BoxlinkError, Corrupt, Missing

PATHS_NAMED = 20


class Damage:
    """Files whose bytes are damaged or missing in the store."""

    def __init__(self) -> None:
        self.count = 0
        self.paths: list[bytes] = []
        self._first: BoxlinkError | None = None

    def add(self, path: bytes, error: Corrupt | Missing) -> None:
        self.count += 1
        if path not in self.paths and len(self.paths) < PATHS_NAMED:
            self.paths.append(path)
        # An object that is gone says that the dataset moved on: the caller may plan anew.
        if self._first is None or (isinstance(error, Missing) and not isinstance(self._first, Missing)):
            self._first = error

    def raise_if_any(self, hint: str) -> None:
        """Missing where an object is gone, else Corrupt; it names the first object and up to 20 of the paths."""
        if self._first is None:
            return
        named = ", ".join(os.fsdecode(path) for path in self.paths)
        more = ", …" if self.count > len(self.paths) else ""
        raise type(self._first)(
            f"{self._first.message}; not restored: {named}{more}",
            hint=hint,
            key=self._first.key,
            path=os.fsdecode(self.paths[0]),
        )
