"""The walls that are served: the current one and those before it.

Nodes are some seconds apart, so a browser that learnt of a wall from one server may ask another that is already past
it. The last ``keep`` walls stay served, each by its own reader.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from structlog.typing import FilteringBoundLogger

from render.core.captions import (
    CATALOG,
    CATALOG_BYTES_MAX,
    TITLE_LENGTH_MAX,
    Caption,
    Captions,
    plain_text,
    read_captions,
    split_lines,
)
from render.core.covers import Covers, collect_covers
from render.core.layout import Layout, layout_of
from render.core.wall import NAMES_BLOCK, wall_id
from synclib.disk.faults import disk_errors
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from synclib.reader import File, Reader

OpenReader = Callable[[int], Reader]  # the reader of a seq
ListCovers = Callable[[Reader], Covers]
# A catalog up to this is read before a wall is shown; a longer one while it is.
_CATALOG_AT_ONCE_BYTES = 4 << 20
WALLS_KEPT = 3
_PIECE_BYTES = 1 << 20
_CATALOG_S = 5.0  # how long a caption waits for the first read of a catalog: as long as an answer does
_AGAIN_S, _AGAIN_S_MAX = 0.5, 30.0


class HeldWall:
    """A wall and the reader that its covers come from. The reader is closed when the last user is done with it."""

    def __init__(self, reader: Reader, covers: Covers) -> None:
        self.id = wall_id(reader.digest)
        self.seq = reader.seq
        self.digest = reader.digest
        self.reader = reader
        self.covers = covers
        self.captions: Captions | None = None  # while they are read
        self._is_catalog_tried = threading.Event()
        self._retired = threading.Event()
        self.layout: Layout = layout_of(len(covers))
        self._users = 0
        self._lock = threading.Lock()

    @property
    def is_retired(self) -> bool:
        return self._retired.is_set()

    def read_captions(self, log: FilteringBoundLogger | None) -> None:
        """Read the catalog: a short one now, else in a thread. Errors of a short one are raised here; a long one is
        read again until it is here, and the log has the first failure."""
        try:
            file = self.reader.open(CATALOG)
        except Missing:
            self._have(Captions(len(self.covers)))
            return
        if file.entry.size > _CATALOG_AT_ONCE_BYTES:
            file.close()
            threading.Thread(target=self._read_long, args=(log,), name="catalog", daemon=True).start()
            return
        self._have(read_captions(self.covers, split_lines(_lines_of(file))))

    def _read_long(self, log: FilteringBoundLogger | None) -> None:
        pause_s = _AGAIN_S
        while not self.is_retired:
            try:
                with self.use():
                    self._have(read_captions(self.covers, split_lines(_lines_of(self.reader.open(CATALOG)))))
                return
            except BoxlinkError as error:
                if log is not None and not self._is_catalog_tried.is_set() and not self.is_retired:
                    hint = "it is read again; until then what shows captions is answered with 503"
                    log.warning("a wall's catalog was not read", wall=self.id, **error.as_dict() | {"hint": hint})
                self._is_catalog_tried.set()
                self._retired.wait(pause_s)
                pause_s = min(2 * pause_s, _AGAIN_S_MAX)

    def _have(self, captions: Captions) -> None:
        self.captions = captions
        self._is_catalog_tried.set()

    @property
    def names_block_count(self) -> int:
        return -(-len(self.covers) // NAMES_BLOCK)

    def caption(self, index: int) -> Caption:
        """A cover's title and author; the title is the file's name where the catalog does not know it. Unavailable
        where the catalog is not here: what is drawn with a caption is kept for long."""
        if self.captions is None:
            self._is_catalog_tried.wait(_CATALOG_S)
        captions = self.captions
        if captions is None:
            raise Unavailable("the catalog is still being read", hint="ask again", key=self.id)
        found = captions.caption(index)
        if found is not None and found.title:
            return found
        author = found.author if found is not None else ""
        return Caption(self.stem(index), author)

    def stem(self, index: int) -> str:
        """The name of a cover's file without its suffix, as text."""
        return plain_text(self.covers.stem(index).decode(errors="replace"), TITLE_LENGTH_MAX)

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Keeps the reader open meanwhile. Missing when the wall is no longer held."""
        with self._lock:
            if self.is_retired:
                raise Missing("this wall is not held here", key=self.id)
            self._users += 1
        try:
            yield
        finally:
            self._release(1)

    def retire(self) -> None:
        """No new use from here on."""
        with self._lock:
            if self.is_retired:
                return
            self._retired.set()
        self._release(0)

    def _release(self, user_count: int) -> None:
        with self._lock:
            self._users -= user_count
            is_last = self.is_retired and self._users == 0
        if is_last:
            self.reader.close()


class Walls:
    """The walls held, newest last; safe between threads."""

    def __init__(self, keep: int = WALLS_KEPT) -> None:
        assert keep >= 2, "a browser may still show the wall before"
        self._keep = keep
        self._walls: dict[str, HeldWall] = {}
        self._current: HeldWall | None = None
        self._lock = threading.Lock()

    @property
    def current(self) -> HeldWall | None:
        return self._current

    def seqs(self) -> list[int]:
        """Of all that are served, the newest last."""
        return [wall.seq for wall in self._walls.values()]

    def find(self, wall: str) -> HeldWall | None:
        return self._walls.get(wall)

    def show(self, wall: HeldWall) -> None:
        """Make a wall the current one; those that have been replaced longest ago are given up."""
        with self._lock:
            # A seq that brings back an older one's content has its name too: the newer reader takes its place.
            held = [old for old in self._walls.values() if old.id != wall.id] + [wall]
            kept = {each.id: each for each in held[-self._keep :]}
            dropped = [old for old in self._walls.values() if kept.get(old.id) is not old]
            self._walls, self._current = kept, wall
        for old in dropped:
            old.retire()

    def hold(self, wall: HeldWall) -> bool:
        """Serve a wall that is not the current one, for as long as there is room; whether there is."""
        with self._lock:
            if wall.id in self._walls or len(self._walls) >= self._keep or self._current is None:
                return False
            self._walls = {wall.id: wall, **self._walls}
            return True

    def close(self) -> None:
        with self._lock:
            walls, self._walls, self._current = self._walls, {}, None
        for wall in walls.values():
            wall.retire()


def listed_covers(reader: Reader) -> Covers:
    """The covers by a listing of everything."""
    return collect_covers(reader.walk())


def load_wall(
    open_reader: OpenReader,
    seq: int,
    digest: str | None,
    list_covers: ListCovers = listed_covers,
    log: FilteringBoundLogger | None = None,
) -> HeldWall:
    """The wall of a seq: lists its covers and reads its catalog, but no cover. ``log``: of what fails later.

    Corrupt when the reader's digest is not ``digest`` (None: whatever the store says); what the reader raises.
    """
    with disk_errors():
        reader = open_reader(seq)
        try:
            if digest is not None and reader.digest != digest:
                raise Corrupt(f"seq {seq} has the digest {reader.digest}, synch.down says {digest}")
            wall = HeldWall(reader, list_covers(reader))
            wall.read_captions(log)
            return wall
        except BaseException:
            reader.close()
            raise


def _lines_of(file: File) -> Iterator[bytes]:
    """The bytes of a catalog, piece by piece, up to CATALOG_BYTES_MAX."""
    try:
        for offset in range(0, min(file.entry.size, CATALOG_BYTES_MAX), _PIECE_BYTES):
            yield file.pread(offset, _PIECE_BYTES)
    finally:
        file.close()
