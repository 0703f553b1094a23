"""Operations of chance on a mount whose cache is so small that it evicts all the time, beside the same on a copy."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mount.same.conftest import Pair, Published, mounted_pair
from tests.mount.same.everything import described, digests, files_of

_SIDES = 2


@pytest.fixture(scope="module", params=["erofs", "fuse"])
def evicting(
    request: pytest.FixtureRequest, published: Published, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    place = tmp_path_factory.mktemp(f"evicting {request.param}")
    with mounted_pair(place, published, request.param, "--cache-size", "8M") as found:
        yield found


@dataclass
class Hands:
    """Files that are open in both trees. An operation gives what it found on each side."""

    pair: Pair
    files: list[bytes]
    directories: list[bytes]
    opened: list[tuple[int, int, int]] = field(default_factory=list)  # descriptors, size

    def close(self) -> None:
        for *descriptors, _ in self.opened:
            for descriptor in descriptors:
                os.close(descriptor)

    def paths(self, name: bytes) -> tuple[bytes, bytes]:
        return os.path.join(self.pair.copy, name), os.path.join(self.pair.mount, name)

    def do(self, verb: str, number: int, place: float, length: int) -> None:
        if verb == "open":
            self._open(self.files[number % len(self.files)])
        elif verb in ("stat", "list", "walk up"):
            self._look(verb, number)
        elif verb == "forget":
            self.pair.forget()
        elif self.opened:
            *descriptors, size = self.opened[number % len(self.opened)]
            at = int(place * (size + 5000)) if length % 3 else int(place * size) // 4096 * 4096
            found = [_on(verb, descriptor, size, at, length) for descriptor in descriptors]
            assert found[0] == found[1], (verb, at, length, size)

    def _open(self, name: bytes) -> None:
        if len(self.opened) >= 8:
            first = self.opened.pop(0)
            for descriptor in first[:_SIDES]:
                os.close(descriptor)
        copy, mount = (os.open(path, os.O_RDONLY) for path in self.paths(name))
        self.opened.append((copy, mount, os.fstat(copy).st_size))

    def _look(self, verb: str, number: int) -> None:
        names = self.directories if verb == "list" else self.files
        copy, mount = self.paths(names[number % len(names)])
        if verb == "list":
            assert sorted(os.listdir(copy)) == sorted(os.listdir(mount))
        elif verb == "stat":
            ours, theirs = os.stat(mount), os.stat(copy)
            assert (ours.st_mode, ours.st_size, ours.st_mtime_ns) == (
                theirs.st_mode,
                theirs.st_size,
                theirs.st_mtime_ns,
            )
        else:
            up = os.path.join(os.path.dirname(mount), b"..", os.path.basename(os.path.dirname(mount)))
            assert os.path.samefile(os.path.join(up, os.path.basename(mount)), mount)


def _on(verb: str, descriptor: int, size: int, at: int, length: int) -> object:
    match verb:
        case "pread":
            return os.pread(descriptor, length, at)
        case "read":
            os.lseek(descriptor, at, os.SEEK_SET)
            return os.read(descriptor, length), os.lseek(descriptor, 0, os.SEEK_CUR)
        case "preadv":
            parts = [bytearray(length), bytearray(100)]
            return os.preadv(descriptor, parts, at), parts
        case "mmap":
            start = at // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            if start >= size:
                return None
            with mmap.mmap(descriptor, size - start, prot=mmap.PROT_READ, offset=start) as mapped:
                return mapped[at - start : at - start + length], mapped[-1]
        case "data":
            # Holes may be told or not; what is no data must be zeros.
            try:
                first = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                first = size
            assert not any(os.pread(descriptor, min(max(first - at, 0), 1 << 20), at))
            return None
        case "end":
            return os.lseek(descriptor, -min(length, size), os.SEEK_END), os.read(descriptor, length + 1)
        case "dup":
            double = os.dup(descriptor)
            try:
                return os.pread(double, length, at)
            finally:
                os.close(double)
        case "past":
            return os.pread(descriptor, length, size + at)
    raise AssertionError(verb)


VERBS = ("open", "open", "pread", "pread", "read", "preadv", "mmap", "data", "end", "dup", "past", "stat", "list")
OPERATION = st.tuples(
    st.sampled_from((*VERBS, "walk up", "forget")),
    st.integers(0, 1 << 16),
    st.floats(0, 1),
    st.sampled_from([0, 1, 100, 4096, 5000, 65_536, 200_000, 1_100_000]),
)


def test_operations_of_chance_find_the_same(evicting: Pair) -> None:
    pair = evicting
    files = sorted(os.path.relpath(path, pair.copy) for path in files_of(pair.copy))
    # The many small ones would be nearly all: each folder has its turn.
    large = [name for name in files if not name.startswith(b"wide/")]
    directories = [os.path.relpath(directory, pair.copy) for directory, _, _ in os.walk(pair.copy)]

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.lists(OPERATION, min_size=1, max_size=40))
    def run(operations: list[tuple[str, int, float, int]]) -> None:
        hands = Hands(pair, large * 3 + files[:100], directories)
        try:
            hands.do("open", len(operations) * 7919, 0, 0)
            for operation in operations:
                hands.do(*operation)
        finally:
            hands.close()

    run()
    # And all of it, twice what the cache may hold: so it has been evicting.
    for _ in range(2):
        pair.forget()
        assert digests(pair.mount) == digests(pair.copy)
    assert described(pair.mount, with_links=pair.has_links) == described(pair.copy, with_links=pair.has_links)
    row = pair.row()
    assert int(str(row["evicted_bytes"])) > 8 << 20
    assert int(str(row["cache_bytes"])) <= 8 << 20
    assert (row["errors"], row["damaged_chunks"]) == (0, 0)
