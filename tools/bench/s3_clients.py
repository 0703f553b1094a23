"""Client CPU a request of boto3 and obstore against a real S3 server, in one run (docs/decisions/0003-obstore.md).

``python -m tools.bench.s3_clients``. What is counted is this process alone: the server is a process of its own. The
clients take turns; each figure is the median of the passes.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from tools import s3server

PASSES = 5
SMALL, LARGE, RANGE = 20_000, 32 << 20, 64 << 10
THREADS = 8
GET, RANGES, PUT, PUT_LARGE, GET_LARGE = "GET 20 KB", "8 ranges of 64 KiB", "PUT 20 KB", "PUT 32 MiB", "GET 32 MiB"
BULK = "GET of an 8 MiB range, 8 threads"
_ROUNDS = {GET: 200, RANGES: 40, PUT: 200, PUT_LARGE: 4, GET_LARGE: 4, BULK: 2}
_CALLS_A_ROUND = {BULK: 32}
_STARTS = [index * RANGE * 4 for index in range(8)]
_BULK_STARTS = [index % 4 * (8 << 20) for index in range(32)]

Calls = dict[str, Callable[[], object]]


def measure(rounds: int, call: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) milliseconds a call, after one call to warm up."""
    call()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(rounds):
        call()
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu / rounds * 1e3, (ended - started) / rounds * 1e3


def calls_of(get: Any, get_range: Any, get_ranges: Any, put: Any, bodies: dict[str, bytes]) -> Calls:
    pool = ThreadPoolExecutor(THREADS)
    return {
        GET: lambda: get("small"),
        RANGES: lambda: get_ranges("large", _STARTS, RANGE),
        PUT: lambda: put("new-small", bodies["small"]),
        PUT_LARGE: lambda: put("new-large", bodies["large"]),
        GET_LARGE: lambda: get("large"),
        BULK: lambda: [None for _ in pool.map(lambda start: get_range("large", start, 8 << 20), _BULK_STARTS)],
    }


def boto3_calls(server: s3server.S3Server, bodies: dict[str, bytes]) -> Calls:
    import boto3
    from botocore.config import Config

    client = boto3.Session().client("s3", endpoint_url=server.endpoint, config=Config(max_pool_connections=THREADS))

    def get(key: str, **arguments: str) -> object:
        return client.get_object(Bucket=server.bucket, Key=key, **arguments)["Body"].read()

    def get_range(key: str, start: int, length: int) -> object:
        return get(key, Range=f"bytes={start}-{start + length - 1}")

    def get_ranges(key: str, starts: list[int], length: int) -> object:
        return [get_range(key, start, length) for start in starts]

    def put(key: str, body: bytes) -> object:
        return client.put_object(Bucket=server.bucket, Key=key, Body=body)

    return calls_of(get, get_range, get_ranges, put, bodies)


def obstore_calls(server: s3server.S3Server, bodies: dict[str, bytes], as_bytes: Callable[[Any], object]) -> Calls:
    """``as_bytes`` makes the result of obstore's buffers: ``bytes`` copies them, ``memoryview`` does not."""
    import boto3
    import obstore
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    store = S3Store(
        server.bucket,
        config={"endpoint": server.endpoint, "region": s3server.REGION},
        client_options={"allow_http": True},
        credential_provider=Boto3CredentialProvider(boto3.Session()),
    )

    def get(key: str) -> object:
        return as_bytes(obstore.get(store, key).bytes())

    def get_ranges(key: str, starts: list[int], length: int) -> object:
        stops = [start + length for start in starts]
        return [as_bytes(part) for part in obstore.get_ranges(store, key, starts=starts, ends=stops, coalesce=0)]

    def get_range(key: str, start: int, length: int) -> object:
        return get_ranges(key, [start], length)

    def put(key: str, body: bytes) -> object:
        return obstore.put(store, key, body, use_multipart=False)

    return calls_of(get, get_range, get_ranges, put, bodies)


def main() -> None:
    print(f"Python {platform.python_version()}, boto3 {version('boto3')}, obstore {version('obstore')}")
    bodies = {"small": os.urandom(SMALL), "large": os.urandom(LARGE)}
    with s3server.running() as server:
        os.environ.update(server.environment())
        contestants = {
            "boto3": boto3_calls(server, bodies),
            "obstore": obstore_calls(server, bodies, bytes),
            "obstore, no copy": obstore_calls(server, bodies, memoryview),
        }
        import boto3

        client = boto3.Session().client("s3", endpoint_url=server.endpoint)
        for name, body in bodies.items():
            client.put_object(Bucket=server.bucket, Key=name, Body=body)
        print("| what | client | CPU ms | wall ms |\n|---|---|---|---|")
        for what, rounds in _ROUNDS.items():
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
            for _ in range(PASSES):
                for name, calls in contestants.items():
                    figures[name].append(measure(rounds, calls[what]))
            for name, passes in figures.items():
                cpu, wall = (
                    statistics.median(values) / _CALLS_A_ROUND.get(what, 1) for values in zip(*passes, strict=True)
                )
                print(f"| {what} | {name} | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
