"""What differs between a base and a directory, in the order of entries.

A directory whose listing is, byte for byte, what the stat cache has of it costs nothing more. Of one that differs only
the names that differ are looked up in the base; of one that the cache does not know (or without a cache: of all) the
base's entries are read in step with the scan. All three give the same.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from synclib.core import names
from synclib.core.delta import RACY_NS, is_unchanged, join
from synclib.core.entry import ChunkRef, Entry, Kind
from synclib.disk.scan import Found, Listing, Row, found_of, list_directory
from synclib.disk.scan_extras import Extras
from synclib.disk.stat_cache import StatCache, is_unsure, pack_rows, unpack_rows, unsure_row
from synclib.engine.host import Progress
from synclib.lazy.chain import Chain, below_bounds

# So many entries are read past before it is cheaper to open the base anew at another place.
_SKIPPED_MAX = 4096
_PROGRESS_EVERY = 1000

# A directory of the scan: (path, directory in the dataset, whether the base has it, whether the scan has it).
_Place = tuple[bytes, bytes, bool, bool]


class Difference:
    """One scan of ``top``, as it would lie under ``prefix``, against the base ``chain``.

    After :meth:`changes` is spent, ``skipped`` names what keeps its old entry, with the reason, and ``notes`` what
    could not be published of paths that were. ``is_live``: the base is the head, so its packs may be referred to anew.
    """

    def __init__(
        self,
        chain: Chain,
        top: bytes,
        prefix: bytes,
        extras: Extras,
        cache: StatCache | None,
        scanned_at_ns: int,
        progress: Progress,
        *,
        is_live: bool,
    ) -> None:
        self.is_live = is_live
        self._chain, self._top, self._prefix = chain, top, prefix
        self._extras, self._cache, self._progress = extras, cache, progress
        self._racy_from_ns = scanned_at_ns - RACY_NS
        self._cursor = _Cursor(chain)
        self._count = self._said = 0
        self.skipped: list[tuple[bytes, str]] = []
        self.notes: list[tuple[bytes, str]] = []

    def changes(self) -> Iterator[Found | Entry]:
        """Files to read as Found, all else as entries; OSError when ``top`` cannot be read."""
        pending: list[_Place] = [(self._top, self._prefix, bool(self._chain.runs), True)]
        while pending:
            path, directory, is_based, is_here = pending.pop()
            if not is_here:
                for entry in self._cursor.between(*below_bounds(directory)):
                    yield Entry(entry.directory, entry.name, Kind.TOMBSTONE)
                continue
            try:
                listing = list_directory(path, directory, self._extras, is_top=path == self._top)
            except OSError as error:
                if path == self._top:
                    raise
                # What lay below it stays: nobody can say that it is gone.
                self.skipped.append((directory, error.strerror or str(error)))
                continue
            self._advance(len(listing.rows))
            children: list[_Place] = []
            yield from self._compare(path, directory, listing, is_based, children)
            children.sort(key=lambda place: place[1], reverse=True)
            pending += children

    def _advance(self, count: int) -> None:
        self._count += count
        if self._count - self._said >= _PROGRESS_EVERY:
            self._said = self._count
            self._progress("scanned", self._count, 0)

    def _compare(
        self, path: bytes, directory: bytes, listing: Listing, is_based: bool, children: list[_Place]
    ) -> Iterator[Found | Entry]:
        """What differs in one directory; ``children`` gets those to look into."""
        rows = listing.rows
        inner = directory + b"/" if directory else b""
        packed = pack_rows(rows)
        taken = self._cache.take(directory) if self._cache is not None else None
        if taken is not None and taken == packed and is_based and not listing.problems and not listing.notes:
            assert self._cache is not None
            self._cache.record(directory, taken, is_same=True)
            children += [(path + b"/" + row[0], inner + row[0], True, True) for row in rows if stat.S_ISDIR(row[1])]
            return
        fresh: set[bytes] = set()  # directories that the base does not have
        unsure: set[bytes] = set()  # rows that prove nothing the next time
        for name, row, old in self._pairs(directory, rows, is_based, taken, listing):
            if row is None:
                if old is not None:
                    yield Entry(directory, name, Kind.TOMBSTONE)
                    if old.kind == Kind.DIRECTORY:
                        children.append((b"", inner + name, True, False))
                continue
            found = found_of(directory, row, listing.problems.get(name, ""))
            if found.problem:
                self.skipped.append((found.path, found.problem))
                unsure.add(name)
                continue
            if name in listing.notes:
                self.notes.append((found.path, listing.notes[name]))
                unsure.add(name)
            if found.kind == Kind.FILE and found.mtime_ns >= self._racy_from_ns:
                unsure.add(name)
            if old is None or old.kind != Kind.DIRECTORY:
                fresh.add(name)
            elif found.kind != Kind.DIRECTORY:
                children.append((b"", inner + name, True, False))
            if old is None or not _is_as_before(old, found):
                yield self._changed(old, found)
        for row in rows:
            if stat.S_ISDIR(row[1]) and row[0] not in listing.problems and not _is_too_long(inner, row[0]):
                children.append((path + b"/" + row[0], inner + row[0], is_based and row[0] not in fresh, True))
        if self._cache is not None:
            if unsure:
                packed = pack_rows([unsure_row(row[0]) if row[0] in unsure else row for row in rows])
            self._cache.record(directory, packed, is_same=packed is not None and packed == taken)

    def _pairs(
        self, directory: bytes, rows: list[Row], is_based: bool, taken: bytes | None, listing: Listing
    ) -> Iterator[tuple[bytes, Row | None, Entry | None]]:
        """(name, row or None, base's entry or None), by name, of all that may differ in a directory."""
        if not is_based:
            yield from ((row[0], row, None) for row in rows)
            return
        if taken is None:
            start = names.sort_key(directory, b"")
            based = self._cursor.between(start, start[:-1] + b"\1")
            for row, old in join(rows, based, lambda row: row[0], lambda entry: entry.name):
                if row is not None:
                    yield row[0], row, old
                elif old is not None:
                    yield old.name, None, old
            return
        here = {row[0]: row for row in rows}
        before = {row[0]: row for row in unpack_rows(taken)}
        differing = {name for name, row in here.items() if before.get(name) != row}
        differing |= before.keys() - here.keys()
        differing |= listing.problems.keys() | listing.notes.keys()
        for name in sorted(differing):
            # The base has no names but those that were recorded, and what a sure row says of them.
            known, entry = before.get(name), None
            if known is not None and is_unsure(known):
                entry = self._chain.lookup(names.sort_key(directory, name))
            elif known is not None:
                entry = _entry_of(found_of(directory, known))
            yield name, here.get(name), entry

    def _changed(self, old: Entry | None, found: Found) -> Found | Entry:
        """A file to be read, or the entry of what needs no reading: its bytes are known where only the rest changed."""
        if found.kind != Kind.FILE:
            return _entry_of(found)
        if (
            self.is_live
            and old is not None
            and is_unchanged(old, found.kind, old.mode, found.mtime_ns, found.size, b"")
        ):
            known = self._chain.lookup(found.key)
            if known is not None and not known.is_racy:
                return _entry_of(found, known.chunks)
        return found


def _entry_of(found: Found, chunks: tuple[ChunkRef, ...] = ()) -> Entry:
    return Entry(
        found.directory,
        found.name,
        found.kind,
        found.mode,
        found.mtime_ns,
        found.size,
        chunks,
        found.target,
        found.extra,
    )


class _Cursor:
    """The base's live entries, without hashes, in step with a scan: ranges come in order."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._entries: Iterator[Entry] | None = None
        self._next: Entry | None = None
        self._key = b""

    def between(self, start: bytes, stop: bytes) -> Iterator[Entry]:
        """Entries with start <= key < stop."""
        if self._entries is None:
            self._seek(start)
        skipped = 0
        while self._next is not None and self._key < start:
            skipped += 1
            if skipped > _SKIPPED_MAX:
                self._seek(start)
            else:
                self._advance()
        while self._next is not None and self._key < stop:
            yield self._next
            self._advance()

    def _seek(self, start: bytes) -> None:
        self._entries = self._chain.entries(start, with_hashes=False)
        self._advance()

    def _advance(self) -> None:
        assert self._entries is not None
        self._next = next(self._entries, None)
        if self._next is not None:
            self._key = self._next.key


def _is_as_before(entry: Entry, found: Found) -> bool:
    return entry.extra == found.extra and is_unchanged(
        entry, found.kind, found.mode, found.mtime_ns, found.size, found.target
    )


def _is_too_long(inner: bytes, name: bytes) -> bool:
    return len(inner) + len(name) > names.PATH_BYTES_MAX
