"""The store as a dictionary: the model that the others are compared with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from synclib.errors import Conflict, Corrupt, Missing
from synclib.store.base import Body, Buffer, Fetched, ObjectInfo
from synclib.store.keys import check_key


class MemoryStore:
    """Keeps objects in this process. Etags count writes."""

    def __init__(self, name: str = "model") -> None:
        self.url = f"memory://{name}"
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._writes = 0
        self._lock = threading.Lock()

    def _find(self, key: str) -> tuple[bytes, str]:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise Missing("there is no such object", key=key) from None

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        data, etag = self._find(key)
        if etag == if_none_match:
            return None
        if len(data) > size_max:
            raise Corrupt(f"it has {len(data)} bytes, {size_max} is the most that is expected", key=key)
        return Fetched(data, etag, len(data))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        data, _ = self._find(key)
        for start, stop in ranges:
            if not 0 <= start < stop <= len(data):
                raise Corrupt(f"bytes {start} to {stop} are not in it: it has {len(data)}", key=key)
        return [data[start:stop] for start, stop in ranges]

    def get_suffix(self, key: str, length: int) -> Fetched:
        data, etag = self._find(key)
        return Fetched(data[max(0, len(data) - length) :], etag, len(data))

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        check_key(key)
        data = bytes(body) if isinstance(body, bytes | bytearray | memoryview) else body.read_bytes()
        with self._lock:
            old = self._objects.get(key)
            if if_absent and old is not None:
                raise Conflict("there is such an object already", key=key)
            if if_match is not None and (old is None or old[1] != if_match):
                raise Conflict("it is no longer what it was", key=key)
            self._writes += 1
            etag = f'"{self._writes}"'
            self._objects[key] = (data, etag)
        return etag

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        check_key(key)
        with self._lock:
            old = self._objects.get(key)
            if old is not None and if_match is not None and old[1] != if_match:
                raise Conflict("it is no longer what it was", key=key)
            self._objects.pop(key, None)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            found = [
                ObjectInfo(key, len(data), etag)
                for key, (data, etag) in self._objects.items()
                if key.startswith(prefix) and key.encode() > after.encode()
            ]
        return iter(sorted(found, key=lambda info: info.key.encode()))
