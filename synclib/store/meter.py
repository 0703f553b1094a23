"""A store that counts: requests by verb, bytes up and down, dollars."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from synclib.store.base import Body, Buffer, Fetched, ObjectInfo, Store

# Amazon S3 Standard, us-east-1, per request (aws.amazon.com/s3/pricing, 2026): reads $0.40, writes and listings $5 a
# million; DELETE is free. Transfer inside a region is free, so bytes cost nothing here.
_USD = {"get": 0.4e-6, "put": 5e-6, "list": 5e-6, "delete": 0.0}


class Meter:
    """Counts of one process; workers' counts are added to their parent's."""

    def __init__(self) -> None:
        self.requests = dict.fromkeys(_USD, 0)
        self.bytes_up = 0
        self.bytes_down = 0
        # Stretches in which at least one request was under way: what asks side by side waits once.
        self.round_trips = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def count(self, verb: str, *, requests: int = 1, up: int = 0, down: int = 0) -> None:
        with self._lock:
            self.requests[verb] += requests
            self.bytes_up += up
            self.bytes_down += down

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """While a request is."""
        with self._lock:
            self.round_trips += not self._under_way
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def add(self, other: Meter) -> None:
        for verb, number in other.requests.items():
            self.count(verb, requests=number)
        self.count("get", requests=0, up=other.bytes_up, down=other.bytes_down)

    def mark(self) -> tuple[int, int, int]:
        """(requests, round trips, bytes down) so far: what lies between two marks is what something cost, and whatever
        else was asked for meanwhile."""
        with self._lock:
            return sum(self.requests.values()), self.round_trips, self.bytes_down

    def take(self) -> Meter:
        """The counts so far; counting begins again at nothing."""
        taken = Meter()
        with self._lock:
            taken.requests, self.requests = self.requests, dict.fromkeys(_USD, 0)
            taken.bytes_up, taken.bytes_down, self.bytes_up, self.bytes_down = self.bytes_up, self.bytes_down, 0, 0
        return taken

    @property
    def usd(self) -> float:
        return sum(_USD[verb] * number for verb, number in self.requests.items())

    def as_dict(self) -> dict[str, object]:
        return {
            "requests": dict(self.requests),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "usd": round(self.usd, 9),
        }

    def __getstate__(self) -> dict[str, object]:
        return {"requests": dict(self.requests), "bytes_up": self.bytes_up, "bytes_down": self.bytes_down}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.round_trips = self._under_way = 0
        self._lock = threading.Lock()


def cost_between(before: tuple[int, int, int], after: tuple[int, int, int]) -> dict[str, int]:
    """What was asked of the store between two marks."""
    names = ("requests", "round_trips", "bytes_down")
    return {name: last - first for name, first, last in zip(names, before, after, strict=True)}


class MeteredStore:
    """Wraps a store; every request that reaches it is counted, also those that fail."""

    def __init__(self, store: Store, meter: Meter, put_requests: Callable[[int], int] = lambda _: 1) -> None:
        """``put_requests`` says how many requests the store makes to write a file of a size."""
        self.url = store.url
        self.store = store
        self.meter = meter
        self._put_requests = put_requests

    def get(self, key: str, *, size_max: int, if_none_match: str | None = None) -> Fetched | None:
        self.meter.count("get")
        with self.meter.under_way():
            fetched = self.store.get(key, size_max=size_max, if_none_match=if_none_match)
        self.meter.count("get", requests=0, down=len(fetched.data) if fetched else 0)
        return fetched

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[Buffer]:
        self.meter.count("get", requests=len(ranges))
        with self.meter.under_way():
            found = self.store.get_ranges(key, ranges)
        self.meter.count("get", requests=0, down=sum(map(len, found)))
        return found

    def get_suffix(self, key: str, length: int) -> Fetched:
        self.meter.count("get")
        with self.meter.under_way():
            fetched = self.store.get_suffix(key, length)
        self.meter.count("get", requests=0, down=len(fetched.data))
        return fetched

    def put(self, key: str, body: Body, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if isinstance(body, bytes | bytearray | memoryview):
            self.meter.count("put", up=memoryview(body).nbytes)
        else:
            size = os.stat(body).st_size
            is_conditional = if_absent or if_match is not None
            self.meter.count("put", requests=1 if is_conditional else self._put_requests(size), up=size)
        with self.meter.under_way():
            return self.store.put(key, body, if_absent=if_absent, if_match=if_match)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self.meter.count("delete")
        with self.meter.under_way():
            self.store.delete(key, if_match=if_match)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """A listing is counted a request per 1,000 keys, as S3 pages them."""
        self.meter.count("list")
        for number, info in enumerate(self.store.list(prefix, after=after), 1):
            if number > 1 and number % 1000 == 1:
                self.meter.count("list")
            yield info
