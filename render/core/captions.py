"""Titles and authors of covers, from the lines of a ``catalog.jsonl``.

A line is a JSON object with ``id`` and, where known, ``title`` and ``author``. The id is a cover's whole path or the
name of its file without the suffix; what matches nothing is ignored, a later line wins. A line that is too long or
is no such object is counted and left out: a catalog never keeps a wall from being shown.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from render.core.covers import Covers

CATALOG = b"catalog.jsonl"
CATALOG_BYTES_MAX = 1 << 30
LINE_BYTES_MAX = 64 << 10
ID_BYTES_MAX = 4096
TITLE_LENGTH_MAX = 300
AUTHOR_LENGTH_MAX = 200
CAPTION_BYTES_MAX = 512 << 20  # of all captions of a wall
_BATCH = 8192


class _Line(msgspec.Struct):
    id: str | int
    title: str | None = None
    author: str | None = None

    @property
    def name(self) -> bytes:
        return str(self.id).encode(errors="replace")


@dataclass(frozen=True, slots=True)
class Caption:
    title: str
    author: str


class Captions:
    """Captions by cover index: 8 bytes a cover and the text once per line of the catalog."""

    def __init__(self, cover_count: int) -> None:
        # 0 is no caption; else the start of its text, plus 1.
        self._starts = array("Q", bytes(8 * cover_count))
        self._text = bytearray()
        self.malformed_count = 0
        self.matched_count = 0

    def caption(self, index: int) -> Caption | None:
        start = self._starts[index]
        if start == 0:
            return None
        title_stop = self._text.index(0, start - 1)
        author_stop = self._text.index(0, title_stop + 1)
        return Caption(
            self._text[start - 1 : title_stop].decode(),
            self._text[title_stop + 1 : author_stop].decode(),
        )

    def _add(self, indexes: list[int], line: _Line) -> None:
        if len(self._text) > CAPTION_BYTES_MAX:
            self.malformed_count += 1
            return
        start = len(self._text) + 1
        for text, length_max in ((line.title, TITLE_LENGTH_MAX), (line.author, AUTHOR_LENGTH_MAX)):
            self._text += plain_text(text or "", length_max).encode() + b"\0"
        for index in indexes:
            self._starts[index] = start
        self.matched_count += 1


class _Names:
    """Finds covers by a name of theirs: 12 bytes a cover, and every hit is compared in full."""

    def __init__(self, covers: Covers, name: Callable[[int], bytes]) -> None:
        self._name = name
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(name(i)) for i in range(len(covers))), np.uint64, len(covers))
        self._order: npt.NDArray[np.int64] = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, wanted: list[bytes]) -> list[list[int]]:
        """For each wanted name the indexes of the covers that have it."""
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(name) for name in wanted), np.uint64, len(wanted))
        starts = np.searchsorted(self._hashes, hashes, "left").tolist()
        stops = np.searchsorted(self._hashes, hashes, "right").tolist()
        return [
            [index for index in self._order[start:stop].tolist() if self._name(index) == name]
            for name, start, stop in zip(wanted, starts, stops, strict=True)
        ]


def read_captions(covers: Covers, lines: Iterable[bytes]) -> Captions:
    """The captions that a catalog's lines (without their ends) give to the covers."""
    captions = Captions(len(covers))
    finders = (_Names(covers, covers.path), _Names(covers, covers.stem))
    batch: list[_Line] = []
    for text in lines:
        if not text.strip():
            continue
        line = parse_line(text)
        if line is None:
            captions.malformed_count += 1
            continue
        batch.append(line)
        if len(batch) == _BATCH:
            _match(captions, finders, batch)
            batch.clear()
    _match(captions, finders, batch)
    return captions


def parse_line(text: bytes) -> _Line | None:
    """A line of a catalog, or None where it is none."""
    if len(text) > LINE_BYTES_MAX:
        return None
    try:
        line = msgspec.json.decode(text, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return line if 0 < len(line.name) <= ID_BYTES_MAX else None


def plain_text(text: str, length_max: int) -> str:
    """``text`` on one line: white space joined, control characters left out, cut to ``length_max`` characters."""
    text = text[: 4 * length_max]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:length_max]


def split_lines(pieces: Iterable[bytes]) -> Iterable[bytes]:
    """The lines in a stream of bytes. What is longer than LINE_BYTES_MAX comes cut, one byte too long, as one line."""
    rest = b""
    for piece in pieces:
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()[: LINE_BYTES_MAX + 1]
        yield from lines
    if rest:
        yield rest


def _match(captions: Captions, finders: tuple[_Names, ...], batch: list[_Line]) -> None:
    wanted = [line.name for line in batch]
    found = [finder.find(wanted) for finder in finders]
    for line, by_path, by_stem in zip(batch, *found, strict=True):
        if indexes := by_path + by_stem:
            captions._add(indexes, line)
