"""A cache bounded by bytes that drops what was used longest ago; safe between threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Holds values up to ``bytes_max`` in all, as ``size_of`` counts them. A larger value is not kept."""

    def __init__(self, bytes_max: int, size_of: Callable[[V], int]) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._size_of = size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: K, value: V) -> None:
        size = self._size_of(value)
        if size > self._bytes_max:
            return
        with self._lock:
            old = self._values.pop(key, None)
            if old is not None:
                self.bytes -= self._size_of(old)
            self._values[key] = value
            self.bytes += size
            while self.bytes > self._bytes_max:
                _, dropped = self._values.popitem(last=False)
                self.bytes -= self._size_of(dropped)
