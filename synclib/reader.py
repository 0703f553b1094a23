"""The reader protocol: a dataset at one seq, wherever its bytes are.

What render, the lazy mounts and file-system adapters stand on. Paths are relative raw bytes, ``b""`` is the root.
Bytes are right or an error: what a reader returns was verified against the seq (I6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from synclib.core.entry import Entry

WritableBuffer = bytearray | memoryview  # memoryview(…) of whatever else has a buffer

# Called with (path, offset, length) when bytes are asked for that were never asked for before.
FirstTouch = Callable[[bytes, int, int], None]


class File(Protocol):
    """An open file at a seq; safe between threads."""

    entry: Entry

    def pread(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end of the file."""

    def readinto(self, buffer: WritableBuffer, offset: int) -> int:
        """Fill ``buffer`` (contiguous, writable) with the file's bytes from ``offset`` on; how many, fewer than it
        holds only at the end of the file.

        For large files: what is far is fetched in many ranges at once, each chunk verified before it goes to its place.
        After an error, whichever it is, the buffer's content is undefined, and nobody writes into it any longer.
        """

    def close(self) -> None: ...


class Reader(Protocol):
    """A dataset at one seq; safe between threads. Its content never changes."""

    seq: int
    digest: str
    on_first_touch: FirstTouch | None

    def stat(self, path: bytes) -> Entry:
        """The entry of a path; Missing when there is none."""

    def listdir(self, path: bytes) -> Iterator[Entry]:
        """The entries of a directory, by name; Missing when there is no such directory."""

    def walk(self, path: bytes = b"") -> Iterator[Entry]:
        """All entries below a directory, in the order of :func:`synclib.core.names.sort_key`."""

    def readlink(self, path: bytes) -> bytes:
        """The target of a symlink; Invalid when it is none."""

    def open(self, path: bytes) -> File:
        """A file's bytes; Missing when there is none, Invalid when it is no file."""

    def close(self) -> None: ...
