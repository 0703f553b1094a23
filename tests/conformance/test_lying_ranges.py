"""A restore from a server that lies about ranges, over a real socket: right bytes or an error, never a wrong file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from synclib.clock import SeededEntropy
from synclib.errors import BoxlinkError, Corrupt, Missing, Unavailable
from synclib.lazy.dataset import Dataset
from synclib.store.memory import MemoryStore
from synclib.store.meter import Meter, MeteredStore
from synclib.store.retry import RetryStore
from synclib.store.s3 import Deadlines, S3Store
from tests.conformance.lying_server import answer, lying, refusal
from tests.kit import Content, Kit, PatientClock, read_tree

QUICK = Deadlines(connect_s=2.0, silence_s=2.0, request_s=5.0)
Lie = Callable[[bytes, int, int], bytes]  # an object's bytes, and which of them are asked for


def ranged(body: bytes, start: int, stop: int, total: int, *, length: int | None = None) -> bytes:
    header = f"Content-Range: bytes {start}-{stop - 1}/{total}\r\n"
    return answer("206 Partial Content", body, length=length, headers=header)


def truth(data: bytes, start: int, stop: int) -> bytes:
    return ranged(data[start:stop], start, stop, len(data))


def shifted(data: bytes, start: int, stop: int) -> bytes:
    """As many bytes from elsewhere."""
    return (data[-1:] + data)[start:stop]


LIES: dict[str, Lie] = {
    "200 with the whole object": lambda data, start, stop: answer("200 OK", data),
    "200 with the range": lambda data, start, stop: answer("200 OK", data[start:stop]),
    "another range, and says so": lambda data, start, stop: ranged(
        shifted(data, start, stop), max(0, start - 1), max(0, start - 1) + stop - start, len(data)
    ),
    "another range under the right name": lambda data, start, stop: ranged(
        shifted(data, start, stop), start, stop, len(data)
    ),
    "a shorter range, and says so": lambda data, start, stop: ranged(
        data[start : stop - 1], start, stop - 1, len(data)
    ),
    "a shorter body under the right name": lambda data, start, stop: ranged(
        data[start : stop - 1], start, stop, len(data)
    ),
    "a body that breaks off": lambda data, start, stop: ranged(
        data[start : stop - 1], start, stop, len(data), length=stop - start
    ),
    "a longer body under the right name": lambda data, start, stop: ranged(
        data[start:stop] + b"more", start, stop, len(data)
    ),
    "a longer range, and says so": lambda data, start, stop: ranged(
        data[start:stop] + b"more", start, stop + 4, len(data) + 4
    ),
    "nothing of it": lambda data, start, stop: ranged(b"", start, stop, len(data)),
    "zeros": lambda data, start, stop: ranged(bytes(stop - start), start, stop, len(data)),
}


# Only a hash shows these, or they look like an object that has been cut: nothing that another try would heal.
UNSEEN = {"zeros", "another range under the right name", "a shorter body under the right name", "nothing of it"}
# Who gets more than he asked for may take what he needs of it.
HARMLESS = {"a longer body under the right name"}


class Server:
    """An S3 server over what a store in memory holds. The first ``lies_left`` ranges of packs and runs are lies."""

    def __init__(self, store: MemoryStore, lie: Lie, lies_left: int) -> None:
        self._store, self._lie, self.lies_left = store, lie, lies_left
        self.told = 0

    def __call__(self, request: str) -> bytes:
        verb, target = request.split(" ")[:2]
        if verb == "PUT":
            return answer("200 OK")
        if verb == "DELETE":
            return answer("204 No Content")
        key = target.partition("?")[0].removeprefix("/bucket/pre/")
        try:
            data = bytes(self._store.get_suffix(key, 1 << 30).data)
        except Missing:
            return refusal("404 Not Found", "NoSuchKey")
        asked = re.search(r"(?mi)^range: bytes=(\d+)-(\d+)\r?$", request)
        if asked is None:
            return answer("200 OK", data)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if self.lies_left and re.search("/(pack|run)/", key):
            self.lies_left -= 1
            self.told += 1
            return self._lie(data, start, stop)
        return truth(data, start, stop)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Kit, Content, Content]:
    """Two versions, of which the first was restored already."""
    entropy = random.Random(1)
    kit = Kit(tmp_path / "kit")
    old: Content = {b"a": b"old", b"d": None, b"d/b": entropy.randbytes(500)}
    new: Content = {b"a": b"new", b"d": None, b"d/b": entropy.randbytes(900), b"large": entropy.randbytes(3 << 20)}
    kit.write(old)
    kit.publish()
    kit.restore(tmp_path / "out")
    kit.write(new)
    kit.publish()
    return kit, old, new


def restored_from(endpoint: str, kit: Kit, out: Path) -> None:
    store = S3Store("bucket", "pre", endpoint=endpoint, region="us-east-1", profile=None, deadlines=QUICK)
    dataset, kit.dataset = (
        kit.dataset,
        Dataset(RetryStore(MeteredStore(store, Meter()), PatientClock(), SeededEntropy(1)), kit.dataset.root),
    )
    try:
        kit.restore(out)
    finally:
        kit.dataset = dataset


@pytest.mark.parametrize("is_there", [True, False], ids=["over an older seq", "into nothing"])
@pytest.mark.parametrize("what", LIES)
def test_no_lie_becomes_a_file(
    aws_environment: None, published: tuple[Kit, Content, Content], tmp_path: Path, what: str, is_there: bool
) -> None:
    kit, old, new = published
    out = tmp_path / ("out" if is_there else "other")
    assert isinstance(kit.store, MemoryStore)
    server = Server(kit.store, LIES[what], 1 << 30)
    error: BoxlinkError | None = None
    with lying(server) as (endpoint, _):
        try:
            restored_from(endpoint, kit, out)
        except BoxlinkError as caught:
            error = caught
    assert server.told
    assert isinstance(error, Corrupt | Unavailable) or (error is None and what in HARMLESS), error
    found = read_tree(out)
    if error is None:
        assert found == new
    for path, value in found.items():
        assert value in (old.get(path, b"") if is_there else b"", new[path]), path
    kit.restore(out)
    assert read_tree(out) == new


@pytest.mark.parametrize("what", sorted(LIES.keys() - UNSEEN))
def test_a_lie_that_is_told_once_is_asked_again(
    aws_environment: None, published: tuple[Kit, Content, Content], tmp_path: Path, what: str
) -> None:
    """What is seen to be no such range is asked for again."""
    kit, _, new = published
    assert isinstance(kit.store, MemoryStore)
    server = Server(kit.store, LIES[what], 1)
    with lying(server) as (endpoint, _):
        restored_from(endpoint, kit, tmp_path / "other")
    assert server.told == 1
    assert read_tree(tmp_path / "other") == new
